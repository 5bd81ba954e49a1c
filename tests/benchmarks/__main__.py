"""`make bench`: every benchmark of this folder, each in a process of its own; one JSON line each, then a table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    names = sorted(p.stem for p in HERE.glob("*.py") if not p.stem.startswith("_"))
    rows, failed = [], []
    for name in sys.argv[1:] or names:
        done = subprocess.run(
            [sys.executable, "-m", f"tests.benchmarks.{name}"], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            failed.append(name)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                print(line, flush=True)
                rows.append(json.loads(line))
    print(f"\n{'id':6} {'benchmark':44} {'measured':>12} {'target':>12}")
    for row in rows:
        print(f"{row['id']:6} {row['benchmark']:44} {row['measured']:>12} {row['target']:>12}")
    for name in failed:
        print(f"{name}: did not finish", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
