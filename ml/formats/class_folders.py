"""Class folders: `<class>/x.jpg` at any depth below the class, optionally inside train/, test/ or val/ and further
folders around the whole set (Z8).
"""

from __future__ import annotations

from collections.abc import Sequence

from ml.formats.entries import Entry
from ml.formats.errors import name_list, printable
from ml.formats.records import SPLITS, LabeledEntry, ReportLine, reject


def label_by_folder(images: dict[str, Entry], folders: Sequence[str], report: list[ReportLine]) -> list[LabeledEntry]:
    """Label images by the folders in which they lie.

    Args:
        images: Files by path.
        folders: Names of the container's folders, each ending in `/`.
        report: Gets a line for each empty folder and for each image outside of a class.

    Raises:
        DatasetFormatError: ambiguous_layout where no image lies in a class, or some lie outside of the split folders.
    """
    # What the folders mean is decided once a folder: there are few, however many images.
    folder_of = {path: path.rpartition("/")[0] for path in images}
    root = find_root(set(folder_of.values()))
    parts = {folder: _below(folder, root).split("/")[:-1] for folder in set(folder_of.values())}
    splits = {names[0].lower() for names in parts.values() if names and names[0].lower() in SPLITS}
    levels = 1 if splits else 0

    # The images, each by its folder.
    labels: dict[str, tuple[str, str] | None] = {}
    entries = []
    for path, entry in images.items():
        folder = folder_of[path]
        if folder not in labels:
            labels[folder] = _split_and_class(parts[folder], splits, path)
        if (label := labels[folder]) is None:
            report.append(ReportLine(path, "no_class_folder", "the image lies in no class folder", "excluded"))
        else:
            entries.append(LabeledEntry(entry, *label, None))
    if not entries:
        reject("ambiguous_layout", "no image lies in a class folder and no table labels them")

    # Folders that would be classes if they held images.
    used = {"/".join(parts[folder][: levels + 1]) for folder, label in labels.items() if label is not None}
    report.extend(
        ReportLine(folder, "empty_class", "the folder holds no images and is no class", "warning")
        for folder in folders
        if folder.startswith(root) and _is_empty_class(folder[len(root) :].strip("/"), levels, used)
    )
    return entries


def _split_and_class(names: Sequence[str], splits: set[str], path: str) -> tuple[str, str] | None:
    """Split and class that the folders around an image name, or None where there is no class."""
    if not splits:
        return ("train", names[0]) if names else None
    if not names or names[0].lower() not in SPLITS:
        reject("ambiguous_layout", f"{printable(path)!r} lies outside of the folders {name_list(splits)}", path)
    return (SPLITS[names[0].lower()], names[1]) if len(names) > 1 else None


def _below(folder: str, root: str) -> str:
    """The path of a folder from the root, ending in `/`; that of the root itself is empty."""
    return f"{folder}/"[len(root) :] if folder else ""


def _is_empty_class(path: str, levels: int, used: set[str]) -> bool:
    """Whether a folder, by its path from the root of the set, lies where a class would and holds none."""
    parts = path.split("/")
    if not path or path in used or len(parts) != levels + 1 or (levels and parts[0].lower() not in SPLITS):
        return False
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def find_root(folders: set[str]) -> str:
    """The folders around the whole set, ending in `/`: all images lie in them, and class folders below them.

    Args:
        folders: The folders of all images.
    """
    root = ""
    while True:
        firsts = {_below(folder, root).partition("/")[0] for folder in folders}
        if len(firsts) != 1 or (first := firsts.pop()).lower() in SPLITS or not first:
            return root
        inner = f"{root}{first}/"
        if not any(_below(folder, inner) for folder in folders):
            return root
        root = inner
