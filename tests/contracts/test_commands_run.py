"""Every benchmark, evidence command and example runs to its end at its smallest size.

What they measure at that size means nothing. Parts that need other peers' servers or data sets are left out.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import servers
from tests.benchmarks.__main__ import HERE, IDS
from tests.benchmarks.ranking import write_smallest_set

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
WITH_SERVICE = ["jobs", "page", "serving", "upload"]  # each starts processes and measures them
TESTED_ELSEWHERE = ["request_costs"]  # tests/app/test_request_costs.py walks the same routes
# One process for all others, since importing torch is most of what they cost at this size.
ALL_IN_ONE = """
import gc, os, runpy, sys
gc.set_threshold(20_000, 20, 20)
for name in sys.argv[2:]:
    sys.argv[:] = [name, "--smallest"]
    try:
        runpy.run_module(f"tests.benchmarks.{name}", run_name="__main__")
    except SystemExit as end:
        assert not end.code, (name, end.code)
    print("ended", name, flush=True)
os._exit(0)
"""


def run(folder: Path, *module: str, **environment: str) -> str:
    """The standard output of `python -m module`, run in `folder`; it must end well."""
    return run_python(folder, "-m", *module, **environment)


def run_python(folder: Path, *arguments: str, **environment: str) -> str:
    own = {name: value for name, value in os.environ.items() if not name.startswith("DENLL_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("name", WITH_SERVICE)
def test_a_benchmark_of_the_service_runs(name: str, tmp_path: Path) -> None:
    require_results(run(tmp_path, f"tests.benchmarks.{name}", "--smallest").splitlines())


def test_the_other_benchmarks_run(tmp_path: Path) -> None:
    names = [name for name in BENCHMARKS if name not in WITH_SERVICE + TESTED_ELSEWHERE]
    lines = iter(run_python(tmp_path, "-c", ALL_IN_ONE, "--smallest", *names).splitlines())
    for name in names:
        require_results(itertools.takewhile(f"ended {name}".__ne__, lines))


def require_results(lines: Iterable[str]) -> None:
    """At least one line of JSON among these, and all of them complete."""
    results = [json.loads(line) for line in lines if line.startswith("{")]
    assert results
    for result in results:
        assert result["id"] in IDS
        assert {"benchmark", "measured", "target", "met"} <= result.keys()


def test_every_answer_to_requests_made_from_the_document_fits_it(tmp_path: Path) -> None:
    summary = run(tmp_path, "tests.fuzz", "--smallest")
    assert re.search(r"Selected: (\d+)/\1\n *Tested: \1\n", summary), summary[-8000:]
    assert re.search(r"\n *(\d+) generated, \1 passed\n", summary), summary[-8000:]


def test_the_demo_runs(tmp_path: Path) -> None:
    port = servers.free_port()
    log = run(tmp_path, "examples.demo", "--smallest", DENLL_PORT=str(port), DENLL_MIN_FREE_BYTES="1000000")
    assert "Act two" in log
    assert (tmp_path / "demo" / "two-scenes.png").exists()


def test_the_study_of_make_evidence_runs(tmp_path: Path) -> None:
    """`small_scenes`, the one that needs no data set: its first row, with fewer pictures and one epoch."""
    text = (ROOT / "ml" / "study" / "files" / "small_scenes.toml").read_text()
    for name, value in (("epochs", 1), ("train", 48), ("test", 12)):
        text, count = re.subn(rf"^{name} = \d+$", f"{name} = {value}", text, count=1, flags=re.MULTILINE)
        assert count == 1
    file = tmp_path / "smallest.toml"
    file.write_text(text)
    table = run(tmp_path, "ml", "study", str(file), "--jobs", "2", "--only", "row=CE", "--only", "seed=1")
    assert "CE" in table


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def test_cutouts_of_photographs_are_made(tmp_path: Path) -> None:
    """From a stand-in for COCO: two classes, one square object in each of eight photographs."""
    source = tmp_path / "coco"
    source.mkdir()
    write_table(source / "classes.csv", [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}])
    random = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for number in range(8):
        pixels = random.integers(0, 255, (32, 48, 3), dtype=np.uint8)
        mask = np.zeros((32, 48), np.uint8)
        mask[8:20, 10:24] = 1 + number % 2
        Image.fromarray(pixels).save(source / f"{number}.png")
        Image.fromarray(mask).save(source / f"mask-{number}.png")
        rows.append({"file": f"{number}.png", "mask": f"mask-{number}.png"})
    write_table(source / "images.csv", rows)
    run(tmp_path, "tests.evidence.cutouts", "coco", str(source), str(tmp_path / "out"))
    pieces = sorted(path.parent.name for path in (tmp_path / "out" / "objects").rglob("*.png"))
    assert pieces == ["cat"] * 4 + ["dog"] * 4
    assert len(list((tmp_path / "out" / "scenes").rglob("*.png"))) == 8


def test_the_evidence_on_probes_runs(tmp_path: Path) -> None:
    """Forty pictures of two classes, every fourth label wrong, and a network without pretrained weights."""
    write_smallest_set(tmp_path)
    page = tmp_path / "page.md"
    keep = tmp_path / "features"
    run(tmp_path, "tests.evidence.probes", str(tmp_path), "--keep", str(keep), "--page", str(page), "--smallest")
    row = page.read_text(encoding="utf-8").splitlines()[-1]
    assert row.startswith("| smallest/label | 16, 40 |")
    assert "0.250" in row
