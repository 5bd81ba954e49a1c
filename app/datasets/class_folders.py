"""Class folders: `<class>/x.jpg` at any depth below the class, under optional wrappers and train/ test/ val/ (Z8)."""

from __future__ import annotations

from collections.abc import Sequence

from app.datasets.entries import Entry
from app.datasets.rows import SPLITS, Finding, Row, listed, reject
from app.errors import shown


def rows_of(images: dict[str, Entry], folders: Sequence[str], findings: list[Finding]) -> list[Row]:
    """Rows from folder names; empty folders and images outside of any class are reported."""
    root = _wrapper(images)
    parts = {path: path[len(root) :].split("/") for path in images}
    splits = {first.lower() for first, *rest in parts.values() if rest and first.lower() in SPLITS}
    levels = 1 if splits else 0
    rows = []
    for path, entry in images.items():
        names = parts[path]
        if splits and (len(names) < 2 or names[0].lower() not in SPLITS):
            reject("ambiguous_layout", f"{shown(path)!r} lies outside of the folders {listed(splits)}", path)
        if len(names) < levels + 2:
            findings.append(Finding(path, "no_class_folder", "the image lies in no class folder", "excluded"))
            continue
        split = SPLITS[names[0].lower()] if splits else "train"
        rows.append(Row(entry, split, names[levels], None))
    if not rows:
        reject("ambiguous_layout", "no image lies in a class folder and no table labels them")
    used = {"/".join(parts[row.entry.path][: levels + 1]) for row in rows}
    findings.extend(
        Finding(folder, "empty_class", "the folder holds no images and is no class", "warning")
        for folder in folders
        if folder.startswith(root) and _is_empty_class(folder[len(root) :].strip("/"), levels, used)
    )
    return rows


def _is_empty_class(inside: str, levels: int, used: set[str]) -> bool:
    """Whether a folder, seen from the root of the set, is where a class would be and holds none."""
    parts = inside.split("/")
    if not inside or inside in used or len(parts) != levels + 1 or (levels and parts[0].lower() not in SPLITS):
        return False
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _wrapper(images: dict[str, Entry]) -> str:
    """The folders that wrap the whole set, ending in `/`: shared by all images, and with class folders below."""
    root = ""
    while True:
        firsts = {path[len(root) :].partition("/")[0] for path in images}
        if len(firsts) != 1 or (first := firsts.pop()).lower() in SPLITS:
            return root
        below = f"{root}{first}/"
        if not any("/" in path[len(below) :] for path in images):
            return root
        root = below
