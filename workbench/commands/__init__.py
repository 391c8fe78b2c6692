"""The commands of `python -m workbench`: each module here adds some to the parser and does them."""

from __future__ import annotations

import argparse
from typing import TypeAlias

from rich.text import Text

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add_subparsers` returns."""


def plain(value: object) -> Text:
    """`value` as text: no markup is read in it, and no control character reaches the terminal."""
    return Text(
        "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(value))
    )
