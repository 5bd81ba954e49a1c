"""Data sets in the formats in which their authors publish them, one module each.

A module has `read(source)`: the pictures of a set in its format, or None where the source holds no such set; and
`LABEL_FILES`, the names of the files that its labels follow from. They run on the user's own files, on the command
line; the service takes what `archive` makes of them, and unpickles nothing.
"""

from __future__ import annotations

from ml.layouts import cifar_binary, cifar_python, clothing1m
from ml.layouts.pictures import Pictures
from ml.layouts.source import Source

FORMATS = (cifar_python, cifar_binary, clothing1m)
LABEL_FILES = frozenset(name for each in FORMATS for name in each.LABEL_FILES)


def find(source: Source) -> Pictures | None:
    """The set that a folder or zip holds in one of the formats, if it does; UnusableData if it is damaged."""
    return next((found for each in FORMATS if (found := each.read(source)) is not None), None)
