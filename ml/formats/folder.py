"""A plain folder as a container of files, under the same rules for names as an archive."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ml.formats.entries import UNLIMITED, Entry, Limits, StoredFile, check_bytes, check_count, check_table_bytes
from ml.formats.entry_names import EntryNames


@dataclass(frozen=True)
class Folder:
    """The files of a folder and of the folders below it. For the fields see `archive.Archive`."""

    path: Path
    entries: list[Entry]
    folders: list[str]
    limits: Limits

    def content(self, entry: Entry) -> bytes:
        """The bytes of a table or a class list; DatasetFormatError (archive_too_large) beyond the limit."""
        check_table_bytes([entry], self.limits)
        return (self.path / entry.path).read_bytes()

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[StoredFile], bytes]]:
        """A function from a file of the folder to its bytes; OSError where it cannot be read."""
        yield lambda file: (self.path / file.path).read_bytes()


def read_folder(path: Path, limits: Limits = UNLIMITED) -> Folder:
    """List a folder in the order of names.

    Links to files are followed, links to folders are not, and neither are devices, sockets and pipes.

    Raises:
        DatasetFormatError: unsafe_entry_name, ambiguous_archive, archive_too_large.
    """
    names = EntryNames()
    entries: list[Entry] = []
    folders: list[str] = []
    total = 0
    for home, inside, files in os.walk(os.fsencode(path)):
        inside.sort()
        above = os.path.relpath(home, os.fsencode(path))
        prefix = b"" if above == b"." else above + b"/"
        folders += [names.add(prefix + name + b"/") for name in inside]
        for name in sorted(files):
            file = os.path.join(home, name)  # noqa: PTH118  # names need not be UTF-8
            if not os.path.isfile(file):  # noqa: PTH113
                continue
            size = os.stat(file).st_size  # noqa: PTH116
            total += size
            check_count(len(entries) + 1, limits)
            inner = names.add(prefix + name)
            check_bytes(inner, size, total, limits)
            entries.append(Entry(inner, 0, size, False, size, None))
    names.check_folders()
    return Folder(path, sorted(entries), folders, limits)
