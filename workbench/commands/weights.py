"""Commands that hand on weights, and compare them with another library's network."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console

from workbench.commands import Commands, plain
from workbench.model_card import LIBRARIES, Library

if TYPE_CHECKING:
    from workbench.export import Export


def add(commands: Commands) -> None:
    """Give `commands` those of this module."""
    text = "Write a network as a folder that transformers or timm opens, with a model card."
    parser = commands.add_parser("export", help="write weights for transformers or timm", description=text)
    parser.add_argument("spec", metavar="SPEC", help="run:PATH[@step=N][:role], dinov3:ARCH:PATH or hf:FOLDER")
    parser.add_argument("folder", metavar="FOLDER", help="where to; must be new or empty")
    parser.add_argument("--format", choices=LIBRARIES, default=LIBRARIES[0], help="(default: transformers)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in FOLDER")
    parser.set_defaults(do=export)
    text = "Write the mean of the weights of several checkpoints as a folder for transformers, to load as hf:FOLDER."
    parser = commands.add_parser("average", help="write the mean weights of several checkpoints", description=text)
    parser.add_argument("specs", metavar="SPEC", nargs="+", help="as for export; run:PATH@step=A,B,C stands for three")
    parser.add_argument("folder", metavar="FOLDER", help="where to; must be new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in FOLDER")
    parser.set_defaults(do=average)
    text = "Print how far the features of a backbone are from those of another library's network with the same weights."
    parser = commands.add_parser("parity", help="compare a backbone with another library", description=text)
    parser.add_argument("spec", metavar="SPEC", help="as for load_backbone")
    parser.set_defaults(do=show_parity)


def export(choice: argparse.Namespace) -> int:
    """Export one network; print the folder, and a line for each thing that could not go with it."""
    from workbench.export import export_backbone

    written = export_backbone(choice.spec, choice.folder, library=choice.format, overwrite=choice.overwrite)
    return _report(written, choice.format)


def average(choice: argparse.Namespace) -> int:
    """Write the mean of the weights of several networks; print as `export` does."""
    from workbench.average import average_backbones

    return _report(average_backbones(choice.specs, choice.folder, overwrite=choice.overwrite), LIBRARIES[0])


def show_parity(choice: argparse.Namespace) -> int:
    """Print what `workbench.parity.parity` measured, in one line."""
    from workbench.parity import parity

    spec, found = choice.spec, parity(choice.spec)
    if found is None:
        line = f"{spec}: no independent implementation to compare with"
    else:
        line = (
            f"{spec}: against {found.reference}, {found.image_size[0]} x {found.image_size[1]} pixels, {found.dtype}: "
            f"difference at most {found.max_abs_difference:.1e}, on average {found.mean_abs_difference:.1e}; "
            f"1 - cosine at most {found.max_cosine_error:.1e}"
        )
    Console().print(plain(line), soft_wrap=True)
    return 0


def _report(written: Export, library: Library) -> int:
    console = Console()
    console.print(plain(f"wrote {written.folder} for {library}; its README.md says how to load it"))
    for note in written.left_out:
        console.print(plain(f"note: {note}"))
    return 0
