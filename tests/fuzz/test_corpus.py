"""The inputs that were kept of coverage-guided fuzzing, repeated without it: each keeps the rules of its target."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import targets

INPUTS = [pytest.param(name, file, id=f"{name}-{file.name}") for name in targets.NAMES for file in targets.inputs(name)]
MOST_BYTES = 200_000  # of all of them


@pytest.mark.parametrize("name", targets.NAMES)
def test_the_corpus_of_a_target_has_inputs_that_are_accepted_and_inputs_that_are_refused(name: str) -> None:
    target = targets.load(name)
    assert {target.check(file.read_bytes()) for file in targets.inputs(name)} == {True, False}


@pytest.mark.parametrize(("name", "file"), INPUTS)
def test_an_input_keeps_the_rules_of_its_target(name: str, file: Path) -> None:
    data = file.read_bytes()
    target = targets.load(name)
    assert target.check(data) == target.check(data)


def test_the_corpus_is_small() -> None:
    assert sum(file.stat().st_size for name in targets.NAMES for file in targets.inputs(name)) < MOST_BYTES


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform")
def test_libfuzzer_sees_which_code_a_target_reaches(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.libfuzzer", "frame_decoder", "-runs=300"]
    folders = [str(tmp_path), str(targets.CORPUS / "frame_decoder")]  # it writes into the first one
    done = subprocess.run([*command, *folders], capture_output=True, text=True, check=True)
    edges = [int(number) for number in re.findall(r"cov: (\d+)", done.stderr)]
    assert edges[-1] > 40, done.stderr
