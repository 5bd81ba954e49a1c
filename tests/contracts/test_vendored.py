"""Libraries of the page and of its tests are the files of their packages, each with its hash and a licence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = pytest.mark.parametrize(
    "folder", [ROOT / "app" / "web" / "static" / "vendor", ROOT / "tests" / "e2e" / "vendor"], ids=["page", "tests"]
)


@FOLDERS
def test_every_vendored_file_has_the_hash_that_is_listed(folder: Path) -> None:
    sums = folder / "SHA256SUMS"
    listed = {name: digest for digest, name in (line.split() for line in sums.read_text().splitlines())}
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file() and path != sums}

    assert listed == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@FOLDERS
def test_every_vendored_library_has_its_version_and_licence(folder: Path) -> None:
    packages = json.loads((folder / "packages.json").read_text())

    assert set(packages) == {path.name for path in folder.iterdir() if path.is_dir()}
    for name in packages:
        assert (folder / name / "LICENSE.txt").stat().st_size > 500
