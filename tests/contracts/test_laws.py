"""The laws of ARCHITECTURE.md seen from outside: fresh processes and types, because import contracts see only files."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TENSORS = {"torch", "torchvision", "numpy", "PIL"}
SERVICE = {"fastapi", "starlette", "celery", "redis", "sqlalchemy", "kombu"}


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages in sys.modules after importing the modules in a fresh process."""
    return {module.split(".")[0] for module in modules_loaded_by(*modules)}


@functools.cache
def modules_loaded_by(*modules: str) -> set[str]:
    """Names in sys.modules after importing the modules in a fresh process, which ends without unloading them."""
    names = "print(json.dumps(sorted(sys.modules)), flush=True)"
    program = f"import gc, json, os, sys; gc.disable(); import {', '.join(modules)}; {names}; os._exit(0)"
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return set(json.loads(output))


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("app.main", TENSORS | {"worker"}),
        ("worker.supervisor.celery_app", TENSORS | {"fastapi", "starlette"}),
        ("worker.supervisor.supervise", TENSORS | {"fastapi", "starlette"}),
        ("worker.dispatcher", TENSORS | {"fastapi", "starlette"}),
        ("worker.children.train", {"fastapi", "starlette"}),
        ("worker.inference.server", {"fastapi", "starlette"}),
        ("ml.training.trainer", SERVICE | {"app", "worker"}),
        ("ml.training.spec", SERVICE | {"torch", "app", "worker"}),
    ],
)
def test_a_process_loads_only_what_its_law_allows(module: str, never: set[str]) -> None:
    """Laws 1-3: what a package's __init__ drags in counts as well."""
    assert loaded_by(module) & never == set()


def test_of_ml_the_api_loads_the_formats_alone() -> None:
    """Law 2: a narrow exception, seen in a process."""
    loaded = {module for module in modules_loaded_by("app.main") if module.split(".")[0] == "ml"}

    assert loaded - {"ml"} == {module for module in loaded if f"{module}.".startswith("ml.formats.")}


def test_the_formats_need_the_standard_library_alone() -> None:
    """Only `backports.zstd` is added on Pythons without `compression.zstd`, when a tar.zst is read."""
    files = [file.relative_to(ROOT).with_suffix("") for file in (ROOT / "ml/formats").rglob("*.py")]
    formats = [".".join(file.parts) for file in files if file.stem != "__init__"]
    before = loaded_by("json")

    assert {name for name in loaded_by(*formats) - before if name not in sys.stdlib_module_names} == {"ml"}


@pytest.mark.parametrize(
    "module",
    [
        "app.main",
        "worker.supervisor.supervise",
        "worker.supervisor.celery_app",
        "ml.training.trainer",
        "ml.methods",
        "ml.networks",
    ],
)
def test_nothing_happens_on_import(module: str, tmp_path: Path) -> None:
    """Law 5: importing opens no file for writing, no socket, and adds no log handler."""
    program = f"""
import gc, logging, os, socket, sys
gc.disable()
touched = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        touched.append(("open", str(arguments[0])))
    if event == "subprocess.Popen" and "ldconfig" in str(arguments[1]):
        return  # torch looks for CUDA libraries
    if event in ("socket.bind", "socket.connect", "subprocess.Popen"):
        touched.append((event, str(arguments[1:])))
sys.addaudithook(watch)
sys.dont_write_bytecode = True
import {module}
assert not logging.getLogger().handlers, logging.getLogger().handlers
print(touched, flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_training_types_have_no_field_for_clean_labels() -> None:
    """Law 7: what a method can reach is given labels; the truth is a type of its own."""
    from ml import method
    from ml.data import dataset

    fields = {
        f.name
        for t in (method.Batch, dataset.LabeledImages, method.TrainHyperparameters)
        for f in dataclasses.fields(t)
    }
    parameters = set(inspect.signature(method.Method.__init__).parameters)

    assert not {name for name in fields | parameters if "clean" in name or "truth" in name}


@pytest.mark.parametrize("folder", ["methods", "blocks"])
def test_a_method_names_neither_truth_nor_measure(folder: str) -> None:
    """Law 7, in the source of every method and of what methods are made of."""
    files = sorted((ROOT / "ml" / folder).rglob("*.py"))

    assert files
    for file in files:
        assert not {"measure", "Truth"} & _named(ast.parse(file.read_text())), file


def test_what_a_module_names_is_found_wherever_it_stands() -> None:
    tree = ast.parse(
        '"""One."""\nfrom ml import measure\ndef f():\n    """Two."""\n    from ml.data.dataset import Truth\n'
    )

    assert {"measure", "Truth"} <= _named(tree)
    assert "measure" in _named(ast.parse("import ml.evaluation.measure"))


def _named(tree: ast.AST) -> set[str]:
    """Every part of every name that a module imports or reads."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {part for alias in node.names for part in alias.name.split(".")}
        if isinstance(node, ast.ImportFrom):
            names |= set((node.module or "").split("."))
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
    return names
