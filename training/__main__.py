"""`python -m training PHASE RECIPE [--run DIR] [overrides]`: the one way to start or resume a training.

The same command again resumes. A recipe is a function in training/recipes/; every field of the resolved config can
be overridden by name (`--loop.steps 200`), and `--help` after a recipe lists them all with their values.
"""

from __future__ import annotations

import difflib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.config import TrainConfig, as_tree
from training.recipes import RECIPES, Recipe

PHASES = {
    "pretrain": "from scratch, by self-distillation (DINO, iBOT, KoLeo) or contrast (SimCLR, MoCo)",
    "anchor": "pretraining goes on from a fork, its patch similarities held to a Gram teacher's",
    "adapt": "the same at higher, mixed resolutions",
}
FORK_COMMAND = "fork"
MISTAKE = 2
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What follows the recipe's name."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    run: Path | None = None
    """Run directory; runs/RECIPE when not given. An existing run of the same config is resumed."""
    fresh: bool = False
    """Delete an existing run of this name and start again."""
    print_config: bool = False
    """Print the resolved config as JSON, as config.json will hold it (fractions are steps by then), and exit."""


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else MISTAKE
    phase, rest = words[0], words[1:]
    if phase == FORK_COMMAND:
        from training.fork import main as fork

        return fork(rest)
    if phase not in PHASES:
        return _mistake(f"unknown phase {phase!r}", phase, [*PHASES, FORK_COMMAND], "phases")
    recipes = {name: recipe for name, recipe in RECIPES.items() if recipe.phase == phase}
    if not rest or rest[0] in ("-h", "--help"):
        print(_overview())
        return 0 if rest else MISTAKE
    if rest[0] not in recipes:
        return _mistake(f"unknown recipe {rest[0]!r} for phase {phase}", rest[0], list(recipes), "recipes")
    return _start(recipes[rest[0]], rest[1:])


def _start(recipe: Recipe, overrides: list[str]) -> int:
    parsed = tyro.cli(
        tyro.conf.AvoidSubcommands[Arguments],
        default=Arguments(config=recipe.build()),
        args=overrides,
        prog=f"python -m training {recipe.phase} {recipe.name}",
        description=recipe.build.__doc__,
    )
    folder = parsed.run or Path("runs") / recipe.name
    try:
        if parsed.print_config:
            print(json.dumps(as_tree(parsed.config.resolve()), indent=2))
            return 0
        from training.launch import launch  # torch networks and data are only needed from here on

        return launch(parsed.config, folder, fresh=parsed.fresh)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print(f"interrupted; the last checkpoint in {folder} is intact, the same command continues", file=sys.stderr)
        return INTERRUPTED


def _overview() -> str:
    lines = [(__doc__ or "").splitlines()[0], "", "phases and recipes:"]
    for phase, meaning in PHASES.items():
        lines.append(f"  {phase:10} {meaning}")
        for recipe in RECIPES.values():
            if recipe.phase == phase:
                lines.append(f"    {recipe.name:14} {recipe.summary}")
    lines += [
        "",
        "fork RUN [--step N]: go on from a step of any self-distillation run with Gram anchoring (fork --help)",
    ]
    lines += ["", "options of a recipe: python -m training PHASE RECIPE --help"]
    return "\n".join(lines)


def _mistake(what: str, seen: str, allowed: list[str], kind: str) -> int:
    nearest = difflib.get_close_matches(seen, allowed, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    print(f"error: {what}; {hint}{kind}: {', '.join(allowed)}", file=sys.stderr)
    return MISTAKE


if __name__ == "__main__":
    sys.exit(main())
