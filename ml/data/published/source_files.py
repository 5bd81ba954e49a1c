"""The files of a folder or an archive by name, for the readers of published formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath

from ml.errors import UnusableData
from ml.formats.entries import Entry, StoredFile


class SourceFiles:
    """Files by name.

    Args:
        entries: The files of a container.
        read: The container's reader.
    """

    def __init__(self, entries: Iterable[Entry], read: Callable[[StoredFile], bytes]) -> None:
        self._entries = {entry.path: entry for entry in entries}
        self._read = read
        self.names = sorted(self._entries)

    def read(self, name: str) -> bytes:
        """The bytes of a file; OSError or DatasetFormatError where it cannot be read."""
        return self._read(self._entries[name])

    def read_lines(self, name: str) -> list[str]:
        """The lines of a text file, stripped, without empty ones; UnusableData (dataset_corrupt) if it is not UTF-8."""
        try:
            text = self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UnusableData(f"{name} is not UTF-8 text", hint="save it as UTF-8", code="dataset_corrupt") from error
        return [line.strip() for line in text.splitlines() if line.strip()]

    def find_siblings(self, leaf: str) -> Mapping[str, str] | None:
        """The files of the folder that has a file named `leaf`, by their names in it.

        Of several such folders the topmost is taken; None where there is none.
        """
        folders = [PurePosixPath(name).parent for name in self.names if PurePosixPath(name).name == leaf]
        if not folders:
            return None
        folder = min(folders, key=lambda path: (len(path.parts), path))
        return {PurePosixPath(name).name: name for name in self.names if PurePosixPath(name).parent == folder}
