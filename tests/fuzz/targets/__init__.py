"""Fuzz targets, one file each, discovered by name: bytes in, and whether our reader accepts them.

A target has `check(data) -> bool`. It raises AssertionError where a rule is broken; any exception that our reader does
not document leaves it as it is. It may have `mutate(data, random_bytes)`, which repairs what a blind change breaks,
such as a checksum, so that more inputs come past the first test.

`python -m tests.fuzz.coverage_guided` searches for inputs; `tests/fuzz/test_corpus.py` repeats those that are kept.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from ml.errors import UndecodableImage
from ml.formats.errors import DatasetFormatError

CORPUS = Path(__file__).parents[1] / "corpus"
NAMES = tuple(sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py")))


def load(name: str) -> ModuleType:
    """The target of this name."""
    return importlib.import_module(f"tests.fuzz.targets.{name}")


def refusal(error: DatasetFormatError | UndecodableImage, codes: Collection[str]) -> str:
    """The code of a refusal, which is one of `codes` and has a sentence that can be shown."""
    assert error.code in codes, error.code
    assert error.detail.isprintable(), error.detail
    return error.code


def inputs(name: str) -> list[Path]:
    """The inputs that are kept for a target."""
    return sorted((CORPUS / name).glob("*.bin"))
