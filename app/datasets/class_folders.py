"""Class folders: `<class>/x.jpg` at any depth below the class, under optional wrappers and train/ test/ val/ (Z8)."""

from __future__ import annotations

from collections.abc import Sequence

from app.datasets.entries import Entry
from app.datasets.rows import SPLITS, Finding, Row, listed, reject
from app.errors import shown


def rows_of(images: dict[str, Entry], folders: Sequence[str], findings: list[Finding]) -> list[Row]:
    """Rows from folder names; empty folders and images outside of any class are reported."""
    homes = {path: path.rpartition("/")[0] for path in images}
    root = _wrapper(set(homes.values()))
    parts = {home: _inside(home, root).split("/")[:-1] for home in set(homes.values())}  # few, however many images
    splits = {names[0].lower() for names in parts.values() if names and names[0].lower() in SPLITS}
    levels = 1 if splits else 0
    labels: dict[str, tuple[str, str] | None] = {}
    rows = []
    for path, entry in images.items():
        home = homes[path]
        if home not in labels:
            labels[home] = _label(parts[home], splits, path)
        if (label := labels[home]) is None:
            findings.append(Finding(path, "no_class_folder", "the image lies in no class folder", "excluded"))
        else:
            rows.append(Row(entry, *label, None))
    if not rows:
        reject("ambiguous_layout", "no image lies in a class folder and no table labels them")
    used = {"/".join(parts[home][: levels + 1]) for home, label in labels.items() if label is not None}
    findings.extend(
        Finding(folder, "empty_class", "the folder holds no images and is no class", "warning")
        for folder in folders
        if folder.startswith(root) and _is_empty_class(folder[len(root) :].strip("/"), levels, used)
    )
    return rows


def _label(names: Sequence[str], splits: set[str], path: str) -> tuple[str, str] | None:
    """Split and class that the folders around an image name, or None where there is no class."""
    if not splits:
        return ("train", names[0]) if names else None
    if not names or names[0].lower() not in SPLITS:
        reject("ambiguous_layout", f"{shown(path)!r} lies outside of the folders {listed(splits)}", path)
    return (SPLITS[names[0].lower()], names[1]) if len(names) > 1 else None


def _inside(home: str, root: str) -> str:
    """A folder as seen from the root, ending in `/`; the root itself is empty."""
    return f"{home}/"[len(root) :] if home else ""


def _is_empty_class(inside: str, levels: int, used: set[str]) -> bool:
    """Whether a folder, seen from the root of the set, is where a class would be and holds none."""
    parts = inside.split("/")
    if not inside or inside in used or len(parts) != levels + 1 or (levels and parts[0].lower() not in SPLITS):
        return False
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _wrapper(homes: set[str]) -> str:
    """The folders that wrap the whole set, ending in `/`: shared by all images, and with class folders below."""
    root = ""
    while True:
        firsts = {_inside(home, root).partition("/")[0] for home in homes}
        if len(firsts) != 1 or (first := firsts.pop()).lower() in SPLITS or not first:
            return root
        below = f"{root}{first}/"
        if not any(_inside(home, below) for home in homes):
            return root
        root = below
