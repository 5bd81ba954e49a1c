"""Where retired names stand in the tracked files: `python -m tests.contracts.names` lists them by name.

Words are searched in every text, in any case and as part of an identifier (`front_desk`, `JobDesk`). Names are searched
as whole identifiers, in Python by the tokenizer and in JavaScript by their definitions; a name that a file imports from
somebody else's package, such as `given` from hypothesis, does not count.
"""

from __future__ import annotations

import ast
import collections
import functools
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("retired_names.toml")
OURS = {"app", "worker", "ml", "tests", "examples", "migrations"}
TEXTS = {".py", ".js", ".html", ".css", ".md", ".toml", ".yml", ".json", ".svg", ".example", ".mako", ".ini", ""}
PASSED_OVER = re.compile(
    r"^CHANGELOG\.md$|^requirements/|^tests/contracts/(retired_names\.toml|names\.py|test_names\.py)$|/vendor/"
)
PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
JS_NAME = re.compile(
    r"\b(?:const|let|var|function|class)\s+([A-Za-z_$][\w$]*)|([A-Za-z_$][\w$]*)\s*=>|\(([\w$, ]*)\)\s*(?:=>|\{)"
)


class Use(NamedTuple):
    """One use of a retired name."""

    name: str
    path: str
    line: int


@functools.cache
def listed() -> dict[str, Any]:
    return tomllib.loads(LIST.read_text())


def tracked() -> list[str]:
    """Tracked files that are searched, by their paths."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [path for path in listing.split("\0") if path and not PASSED_OVER.search(path)]
    return [path for path in paths if Path(path).suffix in TEXTS and (ROOT / path).is_file()]


def uses() -> list[Use]:
    """Every use of a retired name that is not allowed."""
    allowed = listed().get("allowed", ())
    return [
        use
        for path in tracked()
        for use in uses_in(path, (ROOT / path).read_text())
        if not any(entry["name"] == use.name and re.search(entry["path"], use.path) for entry in allowed)
    ]


def uses_in(path: str, text: str) -> Iterator[Use]:
    if path in listed()["paths"]:
        yield Use(path, path, 0)
    for number, line in enumerate(text.splitlines(), 1):
        for part in PART.findall(line):
            word = part.lower()
            for form in (word, word.removesuffix("s")):
                if form in listed()["words"]:
                    yield Use(form, path, number)
                    break
    identifiers = {".py": python_names, ".js": javascript_names}.get(Path(path).suffix)
    if identifiers is not None:
        for name, number in identifiers(text):
            pattern, _ = listed()["names_in"].get(name, ("", ""))
            if name in listed()["names"] or (pattern and re.search(pattern, path)):
                yield Use(name, path, number)


def python_names(text: str) -> Iterator[tuple[str, int]]:
    """Identifiers with their lines, without those imported from packages of others."""
    theirs = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] not in OURS
        for alias in node.names
    }
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string not in theirs:
            yield token.string, token.start[0]


def javascript_names(text: str) -> Iterator[tuple[str, int]]:
    """Names that are defined: constants, variables, functions, classes and parameters."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith(("/*", "*", "//")):
            for single, parameter, parameters in JS_NAME.findall(line):
                for name in (single, parameter, *parameters.split(",")):
                    if name.strip():
                        yield name.strip(), number


def main() -> int:
    """Print how often each retired name is used, or with names as arguments, where."""
    everywhere = uses()
    if selected := set(sys.argv[1:]):
        for use in everywhere:
            if use.name in selected:
                print(f"{use.path}:{use.line}: {use.name}")
        return 0
    for name, count in collections.Counter(use.name for use in everywhere).most_common():
        files = collections.Counter(use.path for use in everywhere if use.name == name)
        print(f"{count:5} {name:20} {', '.join(path for path, _ in files.most_common(4))}")
    return bool(everywhere)


if __name__ == "__main__":
    sys.exit(main())
