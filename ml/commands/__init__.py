"""The commands of `python -m ml`, one file each: `add` says its options, `run` does it and returns the exit code.

Free of torch until one runs, so that the command line answers at once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ml import errors

EXPECTED = (errors.Failure, ValidationError, OSError)  # what users can mend: one line, and no traceback

# What a training's folder holds.
CHECKPOINTS, BUNDLE, SPEC, EPOCHS, ISSUES = "checkpoints", "bundle", "spec.json", "epochs.jsonl", "label-issues.csv"
SELF_TEST = "self-test.json"

Commands = argparse._SubParsersAction  # of ArgumentParser; argparse has no public name for it


def json_option(text: str) -> Any:  # any JSON value
    """What an option that takes JSON holds."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error


def read_json(path: Path) -> Any:  # any JSON value
    """UnusableData where the file holds none; OSError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise errors.UnusableData(f"{path} is no JSON: {error}", code="damaged_json") from error
