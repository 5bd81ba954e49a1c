"""Which names the entries of a container may have (Z1), and that no two name the same file on any system (Z4).

Names are only compared and repeated in messages: no path on disk is ever made from one. Knows no container format.
"""

from __future__ import annotations

import re
import unicodedata

from ml.formats.entries import ambiguous
from ml.formats.errors import DatasetFormatError, printable

MAX_LEVELS = 16
MAX_COMPONENT_BYTES = 255
# What nearly every file is called. A leading dot takes the slow path, so `..` cannot pass here.
_plain = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_. -]{0,254}").fullmatch
_leading_dots = re.compile(r"^(\./)+")


class EntryNames:
    """The names of one container, added one by one."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}  # case-folded name: name
        self._folders: dict[str, str] = {}  # every folder that passed the checks, ancestors included: case-folded name

    def add(self, raw: bytes) -> str:
        """Check a name against the rules and against all names before it.

        Args:
            raw: The name as the container holds it; that of a folder ends in `/`.

        Returns:
            The name without leading `./`; empty for the folder that was packed.

        Raises:
            DatasetFormatError: unsafe_entry_name, ambiguous_archive.
        """
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            readable = printable(raw.decode("latin-1"))
            detail = f"the name {readable!r} is not UTF-8; pack the archive with UTF-8 names"
            raise unsafe_name(readable, detail) from None
        if name.startswith("./"):
            name = _leading_dots.sub("", name)
        folder, _, leaf = name.rpartition("/")
        if (folded := self._folders.get(folder)) is not None and _plain(leaf):
            folded = f"{folded}/{leaf.lower()}"
        else:
            name = self._checked(name)
            if name.endswith("/") or not name:
                return name
            folded = fold(name)
        if (other := self._files.get(folded)) is not None:
            same = "appears twice" if other == name else f"means the same file as {printable(other)!r} on some systems"
            raise ambiguous(f"{printable(name)!r} {same}", name)
        self._files[folded] = name
        return name

    @property
    def folder_count(self) -> int:
        """How many folders the names so far have, at all levels."""
        return len(self._folders)

    def check_folders(self) -> None:
        """Refuse a file that is also a folder, which shows only when all names are known (ambiguous_archive)."""
        for folded in self._folders.values():
            if (file := self._files.get(folded)) is not None:
                raise ambiguous(f"{printable(file)!r} is a file and a folder at once", file)

    def _checked(self, name: str) -> str:
        original = name
        if name in ("", "."):  # the folder the archive was packed in
            return ""
        if not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
            raise unsafe_name(original, f"the name {printable(original)!r} has a control character")
        if "\\" in name:
            raise unsafe_name(original, f"the name {printable(original)!r} has a backslash; use / between folders")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name):
            raise unsafe_name(original, f"the name {printable(original)!r} is absolute")
        parts = name.removesuffix("/").split("/")
        if len(parts) + name.endswith("/") > MAX_LEVELS:
            raise unsafe_name(original, f"the name {printable(original)!r} has more than {MAX_LEVELS} levels")
        for part in parts:
            if part in ("", ".", ".."):
                raise unsafe_name(original, f"the name {printable(original)!r} has the component {part!r}")
            if len(part.encode()) > MAX_COMPONENT_BYTES:
                raise unsafe_name(
                    original, f"a component of {printable(original, 80)!r} is longer than {MAX_COMPONENT_BYTES} bytes"
                )
        folders = parts if name.endswith("/") else parts[:-1]
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            self._folders[folder] = fold(folder)
        return name


def unsafe_name(name: str, detail: str) -> DatasetFormatError:
    """A name that is refused."""
    return DatasetFormatError("unsafe_entry_name", detail, name)


def fold(name: str) -> str:
    """The name as a system compares it for which neither case nor the composition of letters counts."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
