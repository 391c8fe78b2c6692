"""Commands that read image files: write features, compare backbones."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from workbench.commands import Commands, plain
from workbench.plain_files import check_new

_KINDS = ("pca", "foreground", "similarity", "norm")
_AT = "the asked patch, each from 0 at the left and top to 1 (default: 0.5 0.5)"


def add(commands: Commands) -> None:
    """Give `commands` those of this module."""
    text = "Write dense features of images to one file, in float16, with where they come from."
    parser = commands.add_parser("features", help="write dense features of images", description=text)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--backbone", metavar="SPEC", default="demo", help="as for load_backbone (default: demo)")
    parser.add_argument("--out", metavar="FILE", required=True, help="new: .safetensors, .npz, .parquet or .zarr")
    parser.add_argument("--short-side", metavar="PIXELS", type=int, help="resize the shorter side (default: no)")
    parser.add_argument("--layer", metavar="N", type=int, default=-1, help="block, from 0 or the end (default: last)")
    parser.add_argument("--tile", metavar="PIXELS", type=int, default=512, help="side of a window (default: 512)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.set_defaults(do=write_features)
    text = "Write one HTML file that compares backbones, or layers of one, on the same images; one click asks all."
    parser = commands.add_parser("compare", help="write a comparison of backbones as one HTML file", description=text)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files; the square in the middle is taken")
    parser.add_argument("--backbone", metavar="SPEC", action="append", help="as for load_backbone; again for more")
    parser.add_argument("--layers", metavar="N", nargs="*", type=int, help="of one backbone (no number: six of them)")
    parser.add_argument("--out", metavar="FILE", required=True, help="a new .html file")
    parser.add_argument("--side", metavar="PIXELS", type=int, default=224, help="of the square (default: 224)")
    parser.add_argument("--dtype", choices=("int8", "float16"), default="int8", help="of features (default: int8)")
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="(default: en)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.set_defaults(do=write_comparison)
    text = "Draw maps of images (PCA, foreground, similarity, norms) as one .png or .svg, or write them as .npz."
    parser = commands.add_parser("maps", help="draw PCA, similarity and norm maps of images", description=text)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files; all share one PCA basis")
    parser.add_argument("--backbone", metavar="SPEC", default="demo", help="as for load_backbone (default: demo)")
    parser.add_argument("--out", metavar="FILE", required=True, help="a new .png, .svg or .npz file")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=["pca", "similarity", "norm"], help="which maps")
    parser.add_argument("--at", metavar=("X", "Y"), nargs=2, type=float, default=(0.5, 0.5), help=_AT)
    parser.add_argument(
        "--components", metavar="N", nargs=3, type=int, default=(1, 2, 3), help="from 1 (default: 1 2 3)"
    )
    parser.add_argument("--short-side", metavar="PIXELS", type=int, help="resize the shorter side (default: no)")
    parser.add_argument("--layer", metavar="N", type=int, default=-1, help="block, from 0 or the end (default: last)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.set_defaults(do=draw_maps)
    text = "Write a film of a run's probe images: PCA and similarity maps over the steps, as .gif, .webp or .mp4."
    parser = commands.add_parser("film", help="write a film of features over training", description=text)
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--out", metavar="FILE", required=True, help="a new .gif, .webp or .mp4 file")
    parser.add_argument("--images", metavar="N", type=int, default=4, help="how many probe images (default: 4)")
    parser.add_argument("--at", metavar=("X", "Y"), nargs=2, type=float, default=(0.5, 0.5), help=_AT)
    parser.add_argument("--most-steps", metavar="N", type=int, default=60, help="spread over the run (default: 60)")
    parser.add_argument("--seconds", type=float, default=0.4, help="a step is shown for (default: 0.4)")
    parser.set_defaults(do=write_film)


def write_features(choice: argparse.Namespace) -> int:
    """Write the features of image files; a line for each."""
    from workbench.extract import extract

    console = Console()
    about = extract(
        [Path(image) for image in choice.images],
        choice.backbone,
        Path(choice.out),
        short_side=choice.short_side,
        layer=choice.layer,
        tile=choice.tile,
        device=choice.device,
        told=lambda line: console.print(plain(line), soft_wrap=True),
    )
    if about["normalisation_assumed"]:
        console.print(plain("note: not recorded what pixels are to be normalised with; ImageNet's was taken"))
    console.print(plain(f"wrote {choice.out}"), soft_wrap=True)
    return 0


def write_comparison(choice: argparse.Namespace) -> int:
    """Write the HTML file of a comparison and print its size."""
    from workbench.compare import comparison_page

    file, specs = Path(choice.out), choice.backbone or ["demo"]
    check_new(file, (".html",))
    if choice.side < 1:
        raise ValueError(f"--side {choice.side}: images need 1 pixel or more")
    paths = [Path(image) for image in choice.images]
    text = comparison_page(
        paths,
        specs,
        layers=choice.layers,
        side=choice.side,
        dtype=choice.dtype,
        device=choice.device,
        language=choice.language,
    )
    with file.open("x", encoding="utf-8") as opened:
        opened.write(text)
    Console().print(plain(f"wrote {file}: {len(text.encode()) / 1e6:.1f} MB"), soft_wrap=True)
    return 0


def draw_maps(choice: argparse.Namespace) -> int:
    """Write a sheet of maps, or the maps as numbers."""
    from workbench.maps import FORMATS, make_maps, write_maps

    out = Path(choice.out)
    check_new(out, FORMATS)
    found = make_maps(
        [Path(image) for image in choice.images],
        choice.backbone,
        kinds=choice.kinds,
        at=tuple(choice.at),
        components=[component - 1 for component in choice.components],
        short_side=choice.short_side,
        layer=choice.layer,
        device=choice.device,
    )
    write_maps(found, out)
    Console().print(plain(f"wrote {out}"), soft_wrap=True)
    return 0


def write_film(choice: argparse.Namespace) -> int:
    """Write a film of a run and print its length and size."""
    from workbench.film import film
    from workbench.runs import Run

    out = Path(choice.out)
    steps = film(
        Run(choice.run),
        out,
        images=choice.images,
        at=tuple(choice.at),
        most_steps=choice.most_steps,
        seconds=choice.seconds,
    )
    Console().print(plain(f"wrote {out}: {steps} steps, {out.stat().st_size / 1e6:.1f} MB"), soft_wrap=True)
    return 0
