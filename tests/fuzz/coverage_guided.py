"""`python -m tests.fuzz.coverage_guided TARGET|all`: searches for inputs that break a rule of `tests/fuzz/targets`.

Inputs that reach more code go to `fuzzing/TARGET/inputs`, those that break a rule to `fuzzing/TARGET/crashes`. Then the
exit status is 1. `--keep` copies the fewest of the former that reach all of it into the corpus.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz import targets

WORK = Path(__file__).parents[2] / "fuzzing"
MOST_BYTES = 4096  # of an input
LIMITS = (f"-max_len={MOST_BYTES}", "-timeout=10", "-rss_limit_mb=1024")  # a slower or larger run is a crash
SHOWN_LINES = 30  # of the output of a target that fails


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.coverage_guided", description=__doc__)
    parser.add_argument("target", choices=("all", *targets.NAMES))
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="for each target")
    parser.add_argument("--keep", action="store_true", help="do not search: add to the corpus what was reached")
    options = parser.parse_args()
    names = [name for name in targets.NAMES if options.target in ("all", name)]
    failed = [name for name in names if not (keep(name) if options.keep else search(name, options.seconds))]
    if failed:
        print(f"broken: {', '.join(failed)}; python -m tests.fuzz.libfuzzer TARGET FILE repeats a file of {WORK}")
    return 1 if failed else 0


def search(name: str, seconds: int) -> bool:
    """Run a target under libFuzzer; False where an input breaks a rule."""
    inputs, crashes = WORK / name / "inputs", WORK / name / "crashes"
    for folder in (inputs, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    how = (f"-max_total_time={seconds}", f"-artifact_prefix={crashes}/", "-print_final_stats=1", "-reload=0")
    done = run(name, *LIMITS, *how, str(inputs), str(targets.CORPUS / name))
    edges, features = (re.findall(r"cov: (\d+) ft: (\d+)", done.stdout) or [("0", "0")])[-1]
    runs = re.findall(r"number_of_executed_units: (\d+)", done.stdout) or ["0"]
    took = time.monotonic() - started
    print(
        f"{name}: {runs[-1]} inputs in {took:.0f} s, {edges} edges, {features} features, exit {done.returncode}",
        flush=True,
    )
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-SHOWN_LINES:]))
    return done.returncode == 0


def keep(name: str) -> bool:
    """Copy into the corpus the fewest inputs that reach what it does not; False where libFuzzer fails."""
    corpus = targets.CORPUS / name
    # By edges, not by how often each is taken: that would keep three times as many.
    done = run(name, *LIMITS, "-merge=1", "-use_counters=0", str(corpus), str(WORK / name / "inputs"))
    for file in corpus.iterdir():
        file.rename(file.with_suffix(".bin"))  # libFuzzer's names have no ending
    print(f"{name}: {len(targets.inputs(name))} inputs in the corpus, exit {done.returncode}")
    return done.returncode == 0


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """One run of libFuzzer, with its messages as output."""
    command = [sys.executable, "-m", "tests.fuzz.libfuzzer", name, *options]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )


if __name__ == "__main__":
    sys.exit(main())
