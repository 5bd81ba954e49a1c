"""What code and documents mention exists: paths of files, modules with what they define, and targets of `make`."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "worker", "ml", "tests", "migrations", "examples")
FOLDERS = (*PACKAGES, "docs", "requirements")
TEXTS = {".py", ".js", ".md", ".toml", ".yml", ".html", ".css", ".example", ".mako", ""}
# The changelog tells of the past; experiments of the log ran on the tree of their day.
PASSED_OVER = re.compile(r"^(CHANGELOG\.md|docs/log\.md|docs/evidence/.*|requirements/.*|tests/contracts/.*)$")
PATH = re.compile(rf"(?<![\w/.}}-])(?:{'|'.join(FOLDERS)})/[\w./-]*[\w/]")
# In backticks, in quotes, or run with `python -m`: elsewhere `app` is also a variable.
DOTTED = re.compile(rf"""(?:[`"']|-m )((?:{"|".join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)(?![\w/])""")
TARGET = re.compile(r"`make ([a-z][a-z0-9-]*)")
EXAMPLES = {"docs/decisions/NNNN-title.md", "ml/methods/gce.py", "tests/ml/test_gce.py"}  # of what a reader would write
GENERATED = {"app/catalog.json.tmp"}  # for a moment, by `make catalog`
NOT_MODULES = {"worker.run_next_job", "worker.run_next_dataset", "worker.txt"}  # Celery's tasks, a file name


@functools.cache
def tracked() -> frozenset[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return frozenset(path for path in listing.split("\0") if path)


@functools.cache
def folders() -> frozenset[str]:
    return frozenset(str(parent) for path in tracked() for parent in Path(path).parents)


def texts() -> Iterator[tuple[str, int, str]]:
    """Path, line number and line of every tracked text."""
    for path in sorted(tracked()):
        file = ROOT / path
        if file.suffix in TEXTS and not PASSED_OVER.match(path) and file.is_file():
            for number, line in enumerate(file.read_text().splitlines(), 1):
                yield path, number, line


def path_exists(path: str) -> bool:
    """Whether a file or folder is tracked; a decision may be cited by its number alone."""
    clean = path.rstrip("/.")
    known = tracked() | folders() | EXAMPLES | GENERATED
    return clean in known or any(file.startswith(f"{clean}-") for file in tracked() if "/decisions/" in file)


@functools.cache
def names_in(module: str) -> frozenset[str]:
    """Every name that a module or package defines, imports or assigns."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.arg):
            names.add(node.id if isinstance(node, ast.Name) else node.arg)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return frozenset(names)


def dotted_exists(name: str) -> bool:
    """Whether a dotted name is a package, a module, or something in a module."""
    if name in NOT_MODULES:
        return True
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        stem, rest = "/".join(parts[:length]), parts[length:]
        for file in (f"{stem}.py", f"{stem}/__init__.py"):
            if file in tracked():
                return not rest or rest[0] in names_in(file) or rest[0].startswith("__")
        if stem in folders():
            return not rest or f"{stem}/{'.'.join(rest)}" in tracked()
    return False


def missing(pattern: re.Pattern[str], exists: Callable[[str], bool]) -> list[str]:
    """Mentions of something that does not exist, each with its place."""
    return [
        f"{path}:{number}: {mention}"
        for path, number, line in texts()
        for mention in pattern.findall(line)
        if not exists(mention)
    ]


def test_every_path_that_is_mentioned_exists() -> None:
    assert not missing(PATH, path_exists)


def test_every_module_that_is_mentioned_exists() -> None:
    assert not missing(DOTTED, dotted_exists)


def test_every_make_target_that_is_mentioned_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    assert not missing(TARGET, targets.__contains__)


@pytest.mark.parametrize("name", ["app.broker", "app.db.tables.Missing", "ml.training.trainer.nothing"])
def test_a_name_that_does_not_exist_is_noticed(name: str) -> None:
    assert not dotted_exists(name)


@pytest.mark.parametrize("path", ["app/broker.py", "docs/nothing/", "ml/folders.py"])
def test_a_path_that_does_not_exist_is_noticed(path: str) -> None:
    assert not path_exists(path)
