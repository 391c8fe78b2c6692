"""python -m workbench: list runs and judge them, write features, pictures, pages and weights, compare backbones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from workbench.commands import pictures, runs, weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, or 2 after a mistake (told in one line on standard error).

    `doctor` also has 1: there is a warning or an error.
    """
    choice = _parser().parse_args(arguments)
    try:
        return choice.do(choice)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workbench", description="Look at runs, hand on their weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (runs, pictures, weights):
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
