"""Data sets in the formats in which their authors publish them, one module each.

A module has `read(source)`, which returns the data set, or None where the files are of another format; and
`LABEL_FILES`, the names of the files that its labels follow from. They run on the command line alone, on the user's own
files. The service unpickles nothing: it accepts the zip that `conversion` makes of them.
"""

from __future__ import annotations

from ml.data.published import cifar_binary, cifar_python, clothing1m
from ml.data.published.published_dataset import PublishedDataset
from ml.data.published.source_files import SourceFiles

FORMATS = (cifar_python, cifar_binary, clothing1m)
LABEL_FILES = frozenset(name for format in FORMATS for name in format.LABEL_FILES)


def find_published(source: SourceFiles) -> PublishedDataset | None:
    """The data set that a folder or an archive holds in one of the formats, if any; UnusableData if it is damaged."""
    return next((dataset for format in FORMATS if (dataset := format.read(source)) is not None), None)
