"""Libraries of the page are the files of their packages: each has its hash, and a licence beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

VENDOR = Path(__file__).parents[2] / "app" / "web" / "static" / "vendor"
LIST = VENDOR / "SHA256SUMS"


def test_every_vendored_file_has_the_hash_that_is_listed() -> None:
    listed = {name: digest for digest, name in (line.split() for line in LIST.read_text().splitlines())}
    files = {str(path.relative_to(VENDOR)): path for path in VENDOR.rglob("*") if path.is_file() and path != LIST}

    assert listed == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_every_vendored_library_has_its_version_and_licence() -> None:
    packages = json.loads((VENDOR / "packages.json").read_text())

    assert set(packages) == {path.name for path in VENDOR.iterdir() if path.is_dir()}
    for folder in packages:
        assert (VENDOR / folder / "LICENSE.txt").stat().st_size > 500
