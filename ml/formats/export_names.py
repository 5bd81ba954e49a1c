"""Names of files and folders in an export: names that our own reader takes, each once on every system."""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Iterable

from ml.formats.entry_names import MAX_COMPONENT_BYTES, fold
from ml.formats.layout import JUNK
from ml.formats.records import ImageRecord

UNUSABLE = "/\\:"  # in the name of a folder
SUFFIX_BYTES = 24  # kept free for a number that tells equal names apart, and for the ending of a file


class UniqueNames:
    """Names that differ from each other on every system, also where case does not count.

    Args:
        used: Names that are taken from the start.
        are_files: Whether none may be a folder of another.
    """

    def __init__(self, used: Iterable[str] = (), *, are_files: bool = False) -> None:
        self._are_files = are_files
        self._used: set[str] = set()
        self._folders: set[str] = set()
        for name in used:
            self._take(fold(name))

    def add(self, name: str, number: int) -> str:
        """The name, or one made of it and of the number where it is taken: `cat/1.jpg`, `cat/1-17.jpg`.

        Where they are files, a folder with the name of one gets the number too: `cat/1.jpg-17/2.png`.
        """
        folder, _, leaf = name.rpartition("/")
        if self._are_files and folder:
            parts = folder.split("/")
            for depth in range(len(parts)):
                above = "/".join(parts[:depth])
                parts[depth] = self._free(above, parts[depth], "", number, self._used)
            folder = "/".join(parts)
        stem, ending = split_ending(leaf)
        candidate = f"{folder}/" if folder else ""
        candidate += self._free(folder, stem, ending, number, self._used, self._folders)
        self._take(fold(candidate))
        return candidate

    def _free(self, folder: str, stem: str, ending: str, number: int, *used: Container[str]) -> str:
        """The last part of a name in a folder, with the number as often as names are taken."""
        start = f"{folder}/" if folder else ""
        leaf, suffix = stem + ending, f"-{number}"
        while any(fold(start + leaf) in names for names in used):
            leaf = cut(stem, MAX_COMPONENT_BYTES - len((suffix + ending).encode())) + suffix + ending
            suffix += f"-{number}"
        return leaf

    def _take(self, folded: str) -> None:
        self._used.add(folded)
        while self._are_files and (folded := folded.rpartition("/")[0]) and folded not in self._folders:
            self._folders.add(folded)


def beside(files: Iterable[str], path: str, image: ImageRecord) -> str:
    """The path of an image in an archive with other files: number and hash name it where both cannot be.

    Args:
        files: Names of the other files.
        path: The preferred path of the image.
        image: As it was uploaded.
    """
    folded = fold(path)
    for name in files:
        if f"{folded}/".startswith(f"{name.lower()}/") or name.lower().startswith(f"{folded}/"):
            return f"{image.number}-{image.sha256}{split_ending(path)[1]}"
    return path


def split_ending(path: str) -> tuple[str, str]:
    """A path before the ending of its file, and the ending with its dot."""
    stem, dot, ending = path.rpartition(".")
    return (stem, dot + ending) if dot and "/" not in ending else (path, "")


def cut(text: str, limit: int) -> str:
    """The text, or as much of its start as has at most `limit` bytes in UTF-8."""
    return text if len(text.encode()) <= limit else text.encode()[: max(0, limit)].decode(errors="ignore")


def name_folders(classes: Iterable[str], used: Iterable[str]) -> dict[str, str]:
    """The folder of each class: its own name where the reader of uploads takes it as it is.

    A name that cannot be a folder has the characters at fault percent-encoded; equal folders get a number.

    Args:
        classes: Names of the classes.
        used: Names of files that lie beside the folders.
    """
    folders: dict[str, str] = {}
    names = UniqueNames(used)
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
