"""`make bench`: every benchmark of this folder, each in a process of its own; one JSON line each, then a table.

A missed target is a finding, not a failure: the exit status counts the benchmarks that did not run to their end.
Arguments name single benchmarks; with `--smallest` each runs at a size that shows only that it still runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks._sizes import SMALLEST, arguments

HERE = Path(__file__).parent
IDS = (
    *("S1", "S2", "S4", "S5", "T1", "T2", "T3", "T4", "T5", "T6", "T7", "I1", "I2", "I3", "D1", "D2"),
    *("P1", "P2", "P3", "P4", "P5", "P6", "Q1", "Q2", "U1", "U2", "U3", "U4"),
    *("R1", "L1", "L2", "L3", "L4", "L5"),
)
WIDTHS = (4, 62, 10, 10)


def run(name: str) -> tuple[list[dict[str, Any]], bool]:
    """The lines of one benchmark, printed as they come, and whether it ran to its end."""
    lines: list[dict[str, Any]] = []
    command = [sys.executable, "-m", f"{__package__}.{name}", *(["--smallest"] if SMALLEST else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                print(line, end="", flush=True)
                lines.append(json.loads(line))
    return lines, process.returncode == 0


def verdict(line: dict[str, Any]) -> str:
    met = line.get("met")
    if met is None:
        return f"cannot be measured here: {line.get('why', 'no reason given')}"
    return "met" if met else "missed"


def table(lines: Iterable[dict[str, Any]]) -> str:
    """One row for each figure in the order of the ids, and one for each id without a figure."""
    ordered_lines = sorted(lines, key=lambda line: IDS.index(line["id"]) if line["id"] in IDS else len(IDS))
    missing = [id for id in IDS if id not in {line["id"] for line in ordered_lines}]
    rows = [("id", "benchmark", "measured", "target", "verdict")]
    for line in ordered_lines:
        measured = "-" if line["measured"] is None else str(line["measured"])
        rows.append((line["id"], line["benchmark"], measured, str(line["target"]), verdict(line)))
    rows += [(id, "-", "-", "-", "no benchmark printed it") for id in missing]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, (*WIDTHS, 0), strict=True)) for row in rows
    )


def main() -> int:
    names = arguments() or sorted(p.stem for p in HERE.glob("*.py") if not p.stem.startswith("_"))
    lines: list[dict[str, Any]] = []
    failed: list[str] = []
    for name in names:
        started = time.monotonic()
        new_lines, ended = run(name)
        lines += new_lines
        print(f"# {name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if not ended:
            failed.append(name)
    print("\n" + table(lines))
    for name in failed:
        print(f"{name}: did not run to its end", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
