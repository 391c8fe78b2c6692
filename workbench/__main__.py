"""python -m workbench: list runs and judge them, write features, pages and weights, compare backbones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.model_card import LIBRARIES, Library
from workbench.runs import Run, scan_runs

if TYPE_CHECKING:
    from workbench.export import Export

_STYLES = {"live": "green", "ended": "cyan", "stopped": "yellow", "crashed": "red", "silent": "magenta"}
_SCORES = {"patch k-NN": "dense/patch_knn", "mIoU": "dense/linear_miou", "k-NN": "global/knn"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, or 2 after a mistake (told in one line on standard error).

    `doctor` also has 1: there is a warning or an error.
    """
    choice = _parser().parse_args(arguments)
    try:
        if choice.command == "export":
            return export(choice.spec, choice.folder, choice.format, choice.overwrite)
        if choice.command == "average":
            return average(choice.specs, choice.folder, choice.overwrite)
        if choice.command == "parity":
            return show_parity(choice.spec)
        if choice.command == "doctor":
            from workbench.doctor.report import doctor

            return doctor(choice.place, choice.language)
        if choice.command == "health":
            return show_health(choice.run, choice.reference, choice.out)
        if choice.command == "features":
            return write_features(choice)
        if choice.command == "page":
            return write_page(choice)
        if choice.command == "compare":
            return write_comparison(choice)
        if choice.command == "onset":
            return show_onset(choice.run)
        return show_runs(choice.folder)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workbench", description="Look at runs, hand on their weights.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{runs,features,page,compare,parity,doctor,health,onset,export,average}"
    )
    runs = commands.add_parser("runs", help="list the runs in a folder", description="List the runs in a folder.")
    runs.add_argument("folder", metavar="DIR", nargs="?", default="runs", help="folder of runs (default: runs)")
    text = "Write dense features of images to one .safetensors or .npz file, in float16, with where they come from."
    features = commands.add_parser("features", help="write dense features of images", description=text)
    features.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    features.add_argument("--backbone", metavar="SPEC", default="demo", help="as for load_backbone (default: demo)")
    features.add_argument("--out", metavar="FILE", required=True, help="a new .safetensors or .npz file")
    features.add_argument("--short-side", metavar="PIXELS", type=int, help="resize the shorter side (default: no)")
    features.add_argument("--layer", metavar="N", type=int, default=-1, help="block, from 0 or the end (default: last)")
    features.add_argument("--tile", metavar="PIXELS", type=int, default=512, help="side of a window (default: 512)")
    features.add_argument("--device", default="cpu", help="(default: cpu)")
    text = "Write a run as one HTML file: click patches and scrub through the steps, without a server or a network."
    pages = commands.add_parser("page", help="write a run as one HTML file", description=text)
    pages.add_argument("run", metavar="RUN", help="a run's folder")
    pages.add_argument("file", metavar="FILE", help="where to; must be new")
    pages.add_argument("--most-steps", metavar="N", type=int, default=100, help="spread over the run (default: 100)")
    pages.add_argument("--dtype", choices=("int8", "float16"), default="int8", help="of features (default: int8)")
    pages.add_argument("--language", choices=("en", "zh"), default="en", help="(default: en)")
    text = "Write one HTML file that compares backbones, or layers of one, on the same images; one click asks all."
    compares = commands.add_parser("compare", help="write a comparison of backbones as one HTML file", description=text)
    compares.add_argument("images", metavar="IMAGE", nargs="+", help="image files; the square in the middle is taken")
    compares.add_argument("--backbone", metavar="SPEC", action="append", help="as for load_backbone; again for more")
    compares.add_argument("--layers", metavar="N", nargs="*", type=int, help="of one backbone (no number: six of them)")
    compares.add_argument("--out", metavar="FILE", required=True, help="a new .html file")
    compares.add_argument("--side", metavar="PIXELS", type=int, default=224, help="of the square (default: 224)")
    compares.add_argument("--dtype", choices=("int8", "float16"), default="int8", help="of features (default: int8)")
    compares.add_argument("--language", choices=("en", "zh"), default="en", help="(default: en)")
    compares.add_argument("--device", default="cpu", help="(default: cpu)")
    text = "Say what is wrong with a run or a config, and what only looks so. Exit code 1: a warning or an error."
    doctors = commands.add_parser("doctor", help="say what is wrong with a run or a config", description=text)
    doctors.add_argument("place", metavar="RUN|CONFIG", help="a run's folder, a config.json, or - for standard input")
    doctors.add_argument("--language", choices=("en", "zh"), default="en", help="(default: en)")
    text = "Print the label-free gauges of every step that keeps features of the probe images, with standard errors."
    healths = commands.add_parser("health", help="print the label-free gauges of a run's steps", description=text)
    healths.add_argument("run", metavar="RUN", help="a run's folder")
    healths.add_argument("--reference", metavar="STEP", type=int, help="add the Gram distance to this step")
    healths.add_argument("--out", metavar="FILE", help="write a CSV file instead; must be new")
    text = "Say whether the dense features of a run have peaked, and which step makes the best Gram teacher."
    onsets = commands.add_parser("onset", help="say whether dense features have peaked", description=text)
    onsets.add_argument("run", metavar="RUN", help="a run's folder")
    text = "Write a network as a folder that transformers or timm opens, with a model card."
    exports = commands.add_parser("export", help="write weights for transformers or timm", description=text)
    exports.add_argument("spec", metavar="SPEC", help="run:PATH[@step=N][:role], dinov3:ARCH:PATH or hf:FOLDER")
    exports.add_argument("folder", metavar="FOLDER", help="where to; must be new or empty")
    exports.add_argument("--format", choices=LIBRARIES, default=LIBRARIES[0], help="(default: transformers)")
    exports.add_argument("--overwrite", action="store_true", help="replace an earlier export in FOLDER")
    text = "Write the mean of the weights of several checkpoints as a folder for transformers, to load as hf:FOLDER."
    averages = commands.add_parser("average", help="write the mean weights of several checkpoints", description=text)
    averages.add_argument(
        "specs", metavar="SPEC", nargs="+", help="as for export; run:PATH@step=A,B,C stands for three"
    )
    averages.add_argument("folder", metavar="FOLDER", help="where to; must be new or empty")
    averages.add_argument("--overwrite", action="store_true", help="replace an earlier export in FOLDER")
    text = "Print how far the features of a backbone are from those of another library's network with the same weights."
    parities = commands.add_parser("parity", help="compare a backbone with another library", description=text)
    parities.add_argument("spec", metavar="SPEC", help="as for load_backbone")
    return parser


def export(spec: str, folder: str, library: Library, overwrite: bool) -> int:
    """Export the network of `spec`; print the folder, and a line for each thing that could not go with it."""
    from workbench.export import export_backbone

    return _report(export_backbone(spec, folder, library=library, overwrite=overwrite), library)


def average(specs: Sequence[str], folder: str, overwrite: bool) -> int:
    """Write the mean of the weights of `specs`; print as `export` does."""
    from workbench.average import average_backbones

    return _report(average_backbones(specs, folder, overwrite=overwrite), LIBRARIES[0])


def show_parity(spec: str) -> int:
    """Print what `workbench.parity.parity` measured, in one line."""
    from workbench.parity import parity

    found = parity(spec)
    if found is None:
        line = f"{spec}: no independent implementation to compare with"
    else:
        line = (
            f"{spec}: against {found.reference}, {found.image_size[0]} x {found.image_size[1]} pixels, {found.dtype}: "
            f"difference at most {found.max_abs_difference:.1e}, on average {found.mean_abs_difference:.1e}; "
            f"1 - cosine at most {found.max_cosine_error:.1e}"
        )
    Console().print(_plain(line), soft_wrap=True)
    return 0


def _report(written: Export, library: Library) -> int:
    console = Console()
    console.print(_plain(f"wrote {written.folder} for {library}; its README.md says how to load it"))
    for note in written.left_out:
        console.print(_plain(f"note: {note}"))
    return 0


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
        told=lambda line: console.print(_plain(line), soft_wrap=True),
    )
    if about["normalisation_assumed"]:
        console.print(_plain("note: not recorded what pixels are to be normalised with; ImageNet's was taken"))
    console.print(_plain(f"wrote {choice.out}"), soft_wrap=True)
    return 0


def write_page(choice: argparse.Namespace) -> int:
    """Write the HTML file of a run and print its size."""
    from workbench.run_source import run_page, spread

    if choice.most_steps < 1:
        raise ValueError(f"--most-steps {choice.most_steps}: a page needs 1 step or more")
    run = Run(choice.run)
    steps = spread(run.probe_steps(), choice.most_steps) if choice.most_steps > 1 else run.probe_steps()[-1:]
    text = run_page(run, steps, dtype=choice.dtype, language=choice.language)
    with Path(choice.file).open("x", encoding="utf-8") as file:
        file.write(text)
    Console().print(
        _plain(f"wrote {choice.file}: {len(steps)} steps, {len(text.encode()) / 2**20:.1f} MB"), soft_wrap=True
    )
    return 0


def write_comparison(choice: argparse.Namespace) -> int:
    """Write the HTML file of a comparison and print its size."""
    from workbench.compare import comparison_page

    file, specs = Path(choice.out), choice.backbone or ["demo"]
    if file.exists():
        raise FileExistsError(f"{file} exists already; name another file or remove it.")
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
    Console().print(_plain(f"wrote {file}: {len(text.encode()) / 2**20:.1f} MB"), soft_wrap=True)
    return 0


def show_health(folder: str, reference: int | None, out: str | None) -> int:
    """Print the gauges of a run's steps, or write them to the CSV file `out`."""
    from workbench.run_health import health_table, run_health, save_csv

    run = Run(folder)
    rows = list(run_health(run, reference))
    if out is not None:
        save_csv(rows, Path(out))
        return 0
    console = Console()
    about = f"{run.name}, {run.main_role}, on its probe images (what each gauge is: docs/dense-health.md)"
    console.print(_plain(about), soft_wrap=True)
    console.print(health_table(rows, console.width))
    return 0


def show_onset(folder: str) -> int:
    """Print the verdict on a run's evaluations, what each curve says, and the Gram teacher they speak for."""
    from workbench.analysis.advice import advise
    from workbench.analysis.onset import config_for, onset

    run, console = Run(folder), Console()
    start = run.config.get("start")
    start = start if isinstance(start, dict) else {}
    config = config_for("fork" if start.get("fork") else "weights" if start.get("weights") else "random")
    rows = [row for row in run.evaluations()[0] if row.get("backbone") == run.main_role]
    verdict = onset(rows, config)
    console.print(_plain(f"{run.name}, {len(rows)} evaluations up to step {verdict.step}: {verdict.state}"))
    if verdict.peak_step is not None:
        console.print(_plain(f"peak near step {verdict.peak_step}, declining since step {verdict.since}"))
    for turn in (*verdict.turns, *verdict.gauges):
        text = f"  {turn.key}: {turn.state}; best two {turn.peak:.3f}, newest two {turn.now:.3f}"
        console.print(_plain(f"{text}, confidence of a decline {turn.confidence:.3f}"))
    if verdict.early_warning:
        console.print(_plain("early warning: several label-free gauges have turned"))
    advice = advise(rows, verdict, run.steps(), config)
    console.print(_plain("no published step was judged, so none is advised" if advice is None else advice.reason()))
    return 0


def show_runs(folder: str) -> int:
    """Print a table of the runs in `folder`, and a line for each run that is damaged or cannot be opened."""
    listing = scan_runs(folder)
    console = Console()
    if listing.runs:
        console.print(_table(listing.runs))
    elif not listing.problems:
        console.print(_plain(f"no runs in {folder} yet; python -m training pretrain RECIPE starts one"))
    for run in listing.runs:
        if damage := _damage(run):
            console.print(_plain(f"{run.name}: {damage}"), style="yellow")
    for name, problem in listing.problems.items():
        console.print(_plain(f"{name}: {problem}"), style="red")
    return 0


def _table(runs: Sequence[Run]) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("run", "recipe", "state", "step", "last record", *_SCORES):
        table.add_column(name, justify="left" if name in ("run", "recipe", "state") else "right")
    for run in runs:
        state = run.status()
        table.add_row(
            _plain(run.name),
            _plain(run.info.get("recipe") or "-"),
            Text(state, style=_STYLES[state]),
            _plain(f"{_last_step(run)} / {run.info.get('steps', '?')}"),
            _age(run.age()),
            *_scores(run),
        )
    return table


def _damage(run: Run) -> str:
    """What is no record in the append-only files, by file; empty when there is nothing to say."""
    for read in (run.metrics, run.evaluations, run.events):
        read()
    found = [
        f"{name} has {count} damaged {'line' if count == 1 else 'lines'}, left out"
        for name, count in run.skipped.items()
        if count
    ]
    if run.status() != "live":  # a living writer may just be writing that line
        found += [
            f"{name} ends in half a record of {size} bytes, which a resume cuts"
            for name, size in run.torn().items()
            if size
        ]
    return "; ".join(found)


def _last_step(run: Run) -> int | str:
    rows, _ = run.metrics()
    return rows[-1]["step"] if rows else "-"


def _scores(run: Run) -> list[str]:
    """The newest scores of the backbone that is looked at, in per cent."""
    rows = [row for row in run.evaluations()[0] if row.get("backbone") == run.main_role]
    newest = rows[-1] if rows else {}
    return [_percent(newest.get(name)) for name in _SCORES.values()]


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "-"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _plain(value: object) -> Text:
    """`value` as text: no markup is read in it, and no control character reaches the terminal."""
    return Text(
        "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(value))
    )


if __name__ == "__main__":
    sys.exit(main())
