"""`tests.gpu.check` runs on a CPU at its smallest size: a GPU's first minutes are not for mending the check itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.gpu.check import Check


@pytest.mark.slow
def test_every_part_of_the_gpu_check_runs_on_a_cpu() -> None:
    command = [sys.executable, "-m", "tests.gpu.check", "--device", "cpu", "--smallest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    assert {line["part"]: line["status"] for line in lines if "status" in line} == dict.fromkeys(
        Check("cpu", smallest=True).parts(), 0
    ), done.stderr
    assert done.returncode == 0


def test_a_part_that_fails_is_counted_and_stops_no_other() -> None:
    """Without a GPU, or with one hidden, nothing can be computed on `cuda:99`."""
    command = [sys.executable, "-m", "tests.gpu.check", "environment", "environment", "--device", "cuda:99"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)

    assert done.returncode == 2
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == [1, 1]
