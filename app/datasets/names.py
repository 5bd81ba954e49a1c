"""Which names an archive may carry (Z1), and that no two of them mean the same file anywhere (Z4).

Names are only compared and shown: no path on disk is ever made from one. Knows no container format.
"""

from __future__ import annotations

import re
import unicodedata

from app.errors import ArchiveRejected, shown

MAX_LEVELS = 16
MAX_COMPONENT_BYTES = 255
# What nearly every file is called. A leading dot is left to the slow path, so `..` cannot pass here.
_plain = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_. -]{0,254}").fullmatch
_leading_dots = re.compile(r"^(\./)+")


class Names:
    """The names of one archive, admitted one by one."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}  # folded name: name
        self._folders: dict[str, str] = {}  # every folder known to be safe, ancestors included: folded

    def admit(self, raw: bytes) -> str:
        """The name of an entry without leading `./`, ending in `/` for a folder; raises ArchiveRejected."""
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            detail = f"the name {shown(raw.decode('latin-1'))!r} is not UTF-8; pack the archive with UTF-8 names"
            raise unsafe_name(shown(raw.decode("latin-1")), detail) from None
        if name.startswith("./"):
            name = _leading_dots.sub("", name)
        folder, _, leaf = name.rpartition("/")
        if (folded := self._folders.get(folder)) is not None and _plain(leaf):
            folded = f"{folded}/{leaf.lower()}"
        else:
            name = self._checked(name)
            if name.endswith("/") or not name:
                return name
            folded = _folded(name)
        if (other := self._files.setdefault(folded, name)) is not name:
            same = "appears twice" if other == name else f"means the same file as {shown(other)!r} on some systems"
            raise ArchiveRejected(f"{shown(name)!r} {same}", code="ambiguous_archive", entry=name)
        return name

    def finish(self) -> None:
        """A file that is also a folder is seen only when all names are known."""
        for folded in self._folders.values():
            if (file := self._files.get(folded)) is not None:
                raise ArchiveRejected(
                    f"{shown(file)!r} is a file and a folder at once", code="ambiguous_archive", entry=file
                )

    def _checked(self, name: str) -> str:
        original = name
        if name in ("", "."):  # the folder the archive was packed in
            return ""
        if not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
            raise unsafe_name(original, f"the name {shown(original)!r} has a control character")
        if "\\" in name:
            raise unsafe_name(original, f"the name {shown(original)!r} has a backslash; use / between folders")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name):
            raise unsafe_name(original, f"the name {shown(original)!r} is absolute")
        parts = name.removesuffix("/").split("/")
        if len(parts) + name.endswith("/") > MAX_LEVELS:
            raise unsafe_name(original, f"the name {shown(original)!r} has more than {MAX_LEVELS} levels")
        for part in parts:
            if part in ("", ".", ".."):
                raise unsafe_name(original, f"the name {shown(original)!r} has the component {part!r}")
            if len(part.encode()) > MAX_COMPONENT_BYTES:
                raise unsafe_name(
                    original, f"a component of {shown(original, 80)!r} is longer than {MAX_COMPONENT_BYTES} bytes"
                )
        folders = parts if name.endswith("/") else parts[:-1]
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            self._folders[folder] = _folded(folder)
        return name


def unsafe_name(name: str, detail: str) -> ArchiveRejected:
    return ArchiveRejected(detail, code="unsafe_entry_name", entry=name)


def _folded(name: str) -> str:
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
