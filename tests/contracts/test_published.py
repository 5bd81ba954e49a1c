"""What is committed but generated stays true: the import contracts, and the catalog that `ml` publishes to `app`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app import reference
from app.settings import Settings
from ml import catalog, methods, networks
from ml.formats import tensor_shapes
from ml.training import spec

ROOT = Path(__file__).parents[2]
STALE = "app/catalog.json is stale: run `make catalog` and look at what changed"


def test_the_import_contracts_hold() -> None:
    """Laws 1-4, as `pyproject.toml` states them."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-3000:]


def test_the_catalog_is_fresh() -> None:
    """A changed default or bound is visible in review, and the API validates what `ml` accepts."""
    committed = json.loads((ROOT / "app" / "catalog.json").read_text())

    assert committed["spec"] == catalog.schema(spec.TrainingSpec), STALE
    assert {m["name"]: m["params"] for m in committed["methods"]} == {
        name: catalog.schema(methods.load(name).Params) for name in methods.names()
    }, STALE
    assert {m["name"]: m["presets"] for m in committed["methods"]} == {
        name: methods.load(name).ABOUT["presets"] for name in methods.names()
    }, STALE
    assert [n["name"] for n in committed["networks"]] == list(networks.names()), STALE
    assert all(n["parameters"] > 0 for n in committed["networks"])
    assert next(n for n in committed["networks"] if n["name"] == "small") == {
        "name": "small",
        **networks.about("small"),
    }, STALE
    assert set(committed["tensor_shapes"]["networks"]) == set(networks.names()), STALE
    for name in ("small", "preact_resnet18", "resnet18", "efficientnet_lite0"):  # those that need no torchvision
        assert tensor_shapes.unpack(committed["tensor_shapes"], name) == networks.required_shapes(name), STALE


@pytest.mark.parametrize("name", sorted(reference.pages()))
def test_the_reference_is_fresh(name: str) -> None:
    """Settings, methods and problems on paper are those of the code."""
    assert (reference.FOLDER / name).read_text() == reference.pages()[name], "run `make reference`"


def test_every_setting_has_a_description() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


def test_the_shortest_method_is_the_one_that_is_named() -> None:
    """ARCHITECTURE.md sends whoever writes a method to the shortest one."""
    files = [file for file in (ROOT / "ml" / "methods").glob("*.py") if file.name != "__init__.py"]
    shortest = min(len(file.read_text().splitlines()) for file in files)
    named = re.search(r"shortest: `(ml/methods/\w+\.py)`", (ROOT / "ARCHITECTURE.md").read_text())

    assert named is not None
    assert len((ROOT / named[1]).read_text().splitlines()) == shortest
