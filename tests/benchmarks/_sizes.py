"""The sizes of a benchmark: those of its figures, or with `--smallest` those that only show that it runs."""

from __future__ import annotations

import sys
from typing import TypeVar

T = TypeVar("T")
SMALLEST = "--smallest" in sys.argv


def size(full: T, smallest: T) -> T:
    """`full`, or `smallest` where the command line asks for it; figures measured then mean nothing."""
    return smallest if SMALLEST else full


def arguments() -> list[str]:
    """The other arguments of the command line."""
    return [argument for argument in sys.argv[1:] if argument != "--smallest"]
