"""Every code that a problem, a rejected data set or a failed job can carry has a page that explains it."""

from __future__ import annotations

import ast
import http
import inspect
from collections.abc import Iterator
from pathlib import Path

from app import errors as problems
from app.web import problem_pages
from ml import errors as failures

ROOT = Path(__file__).parents[2]
# The command line's own failures: no job and no request ends with them.
COMMAND_LINE = (
    "ml/commands/",
    "ml/study/",
    "ml/data/published/",
    "ml/data/container_dataset.py",
    "ml/formats/container.py",
)
# What the framework itself refuses.
FRAMEWORK = {http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.NOT_FOUND, http.HTTPStatus.METHOD_NOT_ALLOWED}
# Functions that raise a problem or a failure and take its code as their first argument.
REFUSALS = {
    "reject", "reject_line", "reject_columns", "_error", "DatasetFormatError", "UndecodableImage", "Refused",
}  # fmt: skip


def class_codes() -> Iterator[str]:
    for module, base in ((problems, problems.Problem), (failures, failures.Failure)):
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, base) and kind is not base:
                yield problems.snake(kind.__name__)


def written_codes(tree: ast.AST) -> Iterator[str]:
    """Literal codes in a module: `code="..."`, `{"code": "..."}`, and the first argument of a refusal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "code":
            yield from literals(node.value)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "code":
                    yield from literals(value)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in REFUSALS and node.args:
                yield from literals(node.args[0])


def literals(node: ast.AST) -> Iterator[str]:
    """A constant, or the constants that an expression with `if` or `or` chooses from."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from literals(node.body)
        yield from literals(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from literals(value)


def source_codes() -> dict[str, set[str]]:
    """Files by code."""
    codes: dict[str, set[str]] = {code: {"class"} for code in class_codes()}
    for file in sorted(f for package in ("app", "worker", "ml") for f in (ROOT / package).rglob("*.py")):
        path = str(file.relative_to(ROOT))
        if not path.startswith(COMMAND_LINE):
            for code in written_codes(ast.parse(file.read_text())):
                codes.setdefault(code, set()).add(path)
    for status in FRAMEWORK:
        codes.setdefault(problems.snake(status.phrase.replace(" ", "")), set()).add("framework")
    return codes


def test_every_code_of_the_source_is_explained() -> None:
    missing = {code: sorted(files) for code, files in source_codes().items() if code not in problem_pages.texts()}

    assert not missing


def test_every_explained_code_exists() -> None:
    """A code is assembled nowhere else than in these files, or the text is stale."""
    text = "\n".join(f.read_text() for package in ("app", "worker", "ml") for f in (ROOT / package).rglob("*.py"))
    known = source_codes()

    assert not [code for code in problem_pages.texts() if code not in known and f'"{code}"' not in text]


def test_status_and_title_are_those_of_the_class() -> None:
    for _, kind in inspect.getmembers(problems, inspect.isclass):
        if issubclass(kind, problems.Problem) and kind is not problems.Problem:
            text = problem_pages.texts()[problems.snake(kind.__name__)]
            assert (text.status, text.title) == (kind.status, kind.title)
