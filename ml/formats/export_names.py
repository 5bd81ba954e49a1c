"""Names of files and folders in an export: names that our own reader takes, each once on every system."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from ml.formats.entry_names import MAX_COMPONENT_BYTES, fold
from ml.formats.layout import JUNK

UNUSABLE = "/\\:"  # in the name of a folder
SUFFIX_BYTES = 24  # kept free for a number that tells equal names apart, and for the ending of a file


class UniqueNames:
    """Names that differ from each other on every system, also where case does not count.

    Args:
        used: Names that are taken from the start.
    """

    def __init__(self, used: Iterable[str] = ()) -> None:
        self._used = {fold(name) for name in used}

    def add(self, name: str, number: int) -> str:
        """The name, or one made of it and of the number where it is taken: `cat/1.jpg`, `cat/1-17.jpg`."""
        stem, ending = split_ending(name)
        candidate, suffix = name, f"-{number}"
        while (folded := fold(candidate)) in self._used:
            folder, _, leaf = stem.rpartition("/")
            leaf = cut(leaf, MAX_COMPONENT_BYTES - len((suffix + ending).encode()))
            candidate = f"{folder}/{leaf}{suffix}{ending}".removeprefix("/")
            suffix += f"-{number}"
        self._used.add(folded)
        return candidate


def split_ending(path: str) -> tuple[str, str]:
    """A path before the ending of its file, and the ending with its dot."""
    stem, dot, ending = path.rpartition(".")
    return (stem, dot + ending) if dot and "/" not in ending else (path, "")


def cut(text: str, limit: int) -> str:
    """The text, or as much of its start as has at most `limit` bytes in UTF-8."""
    return text if len(text.encode()) <= limit else text.encode()[: max(0, limit)].decode(errors="ignore")


def name_folders(classes: Iterable[str]) -> dict[str, str]:
    """The folder of each class: its own name where the reader of uploads takes it as it is.

    A name that cannot be a folder has the characters at fault percent-encoded; equal folders get a number.
    """
    folders: dict[str, str] = {}
    names = UniqueNames()
    for number, name in enumerate(classes):
        is_usable = (
            not any(c in UNUSABLE or _is_control(c) for c in name)
            and not _is_junk(name)
            and len(name.encode()) <= MAX_COMPONENT_BYTES
        )
        folder = name if is_usable else cut(_encode(name), MAX_COMPONENT_BYTES - SUFFIX_BYTES)
        folders[name] = names.add(folder, number)
    return folders


def _encode(name: str) -> str:
    encoded = "".join(_percent(c) if c in f"%{UNUSABLE}" or _is_control(c) else c for c in name)
    return _percent(encoded[0]) + encoded[1:] if _is_junk(encoded) else encoded


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def _is_control(character: str) -> bool:
    return not character.isprintable() and unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK
