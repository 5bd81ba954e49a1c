"""Where the files of a data set lie: an archive or a plain folder, read by one interface."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ml.formats.archive import read_archive
from ml.formats.entries import UNLIMITED, Entry, Limits, StoredFile
from ml.formats.errors import DatasetFormatError
from ml.formats.folder import read_folder


class Container(Protocol):
    """Files by name, with the place of their bytes. `archive.Archive` explains the parts."""

    @property
    def path(self) -> Path: ...
    @property
    def entries(self) -> list[Entry]: ...
    @property
    def folders(self) -> list[str]: ...
    @property
    def limits(self) -> Limits: ...
    def content(self, entry: Entry) -> bytes: ...
    def reader(self) -> AbstractContextManager[Callable[[StoredFile], bytes]]: ...


def open_container(path: Path, limits: Limits = UNLIMITED) -> Container:
    """Check the structure of a folder or an archive and list its files.

    Raises:
        DatasetFormatError: `no_data` where nothing is there, otherwise as `archive.read_archive`.
    """
    if path.is_dir():
        return read_folder(path, limits)
    if not path.exists():
        raise DatasetFormatError("no_data", "there is no such file or folder")
    return read_archive(path, limits)
