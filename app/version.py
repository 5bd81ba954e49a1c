"""The version of the service, which stands in `pyproject.toml` alone."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"  # also in the image of the API


@functools.cache
def current() -> str:
    """The version, such as `1.2.0`."""
    return str(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"])
