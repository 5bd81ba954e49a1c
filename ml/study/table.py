"""A study's table in Markdown for people, in CSV and JSON for machines.

It reads lines and knows no result file: a table can be made wherever the results are.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ml.study.plan import Plan
from ml.study.rows import MEASURES, PERCENT, Line, Measure, Result, Spread, lines


def markdown(plan: Plan, made: Sequence[Line]) -> str:
    """The tables for people: one for each measure that any run has."""
    study = plan.study
    text = [f"# {study.title}", ""]
    if study.about:
        text += [study.about.strip(), ""]
    done, wanted = sum(len(line.values["seconds"]) for line in made), sum(line.wanted for line in made)
    text += [
        f"{done} of {wanted} results{_conditions(made)}. Mean ± sample standard deviation over seeds; [n] where seeds "
        "are missing."
    ]
    rates = {line.cell.name: line.noise_rate for line in made if line.noise_rate is not None}
    if rates:
        told = ", ".join(f"{name} {PERCENT * rate.mean:.1f} %" for name, rate in rates.items())
        text += ["", f"Wrong labels (realised): {told}."]
    if plan.faults:
        text += ["", "Not in the table:", *(f"- {fault}" for fault in plan.faults)]
    for measure in MEASURES:
        if measure.name == study.report or any(line.values[measure.name] for line in made):
            text += ["", f"## {measure.title[0].upper()}{measure.title[1:]}", ""]
            beside = measure.name == study.report and any(line.paper for line in made)
            if beside:
                text += ["In parentheses the paper's number.", ""]
            text += _grid(plan, made, measure, beside)
    if any(line.cost is not None for line in made):
        text += [
            "",
            f"## Cost relative to {study.reference}",
            "",
            "Median over seeds of the ratio of these seconds.",
            "",
        ]
        text += _ratios(plan, made)
    return "\n".join(text) + "\n"


def _conditions(made: Sequence[Line]) -> str:
    """Under which the results came about; several versions of the code are told, since they may differ."""
    found = sorted(frozenset[tuple[str, str, str]]().union(*(line.conditions for line in made)))
    machines = dict.fromkeys(f"{device}, torch {torch}" for device, torch, _ in found)
    versions = {code for _, _, code in found}
    told = [*machines, f"{len(versions)} versions of the code"] if len(versions) > 1 else list(machines)
    return f" ({'; '.join(told)})" if told else ""


def _grid(plan: Plan, made: Sequence[Line], measure: Measure, beside: bool) -> list[str]:
    """Rows by cells, with the mean over the cells where a row has them all."""

    def shown(line: Line) -> str:
        theirs = ""
        if beside and line.paper is not None:
            mean, std = line.paper
            theirs = f" ({mean:g})" if std is None else f" ({mean:g} ± {std:g})"
        return _shown(line.spread(measure.name), line.wanted, measure.digits) + theirs

    def average(of_row: Sequence[Line]) -> str:
        seeds = set.intersection(*(set(line.values[measure.name]) for line in of_row))
        means = [statistics.fmean(line.values[measure.name][seed] for line in of_row) for seed in sorted(seeds)]
        return _shown(Spread.of(means), max(line.wanted for line in of_row), measure.digits)

    return _rows(plan, made, shown, average)


def _ratios(plan: Plan, made: Sequence[Line]) -> list[str]:
    def average(of_row: Sequence[Line]) -> str:
        known = [line.cost for line in of_row if line.cost is not None]
        return f"{statistics.median(known):.2f}" if known else "–"

    return _rows(plan, made, lambda line: "–" if line.cost is None else f"{line.cost:.2f}", average)


def _rows(
    plan: Plan, made: Sequence[Line], shown: Callable[[Line], str], average: Callable[[Sequence[Line]], str]
) -> list[str]:
    cells = [cell.name for cell in plan.study.cells if any(line.cell.name == cell.name for line in made)]
    head = ["", *cells, *(["all"] if len(cells) > 1 else [])]
    text = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in plan.study.rows:
        of_row = {line.cell.name: line for line in made if line.row.label == row.label}
        if of_row:
            parts = [shown(of_row[name]) if name in of_row else "" for name in cells]
            if len(cells) > 1:
                parts.append(average(list(of_row.values())) if len(of_row) == len(cells) else "")
            text.append(f"| {row.label} | {' | '.join(parts)} |")
    return text


def _shown(spread: Spread | None, wanted: int, digits: int) -> str:
    if spread is None or math.isnan(spread.mean):
        return "–"
    text = f"{spread.mean:.{digits}f}"
    if spread.std is not None:
        text += f" ± {spread.std:.{digits}f}"
    return text if spread.seeds == wanted else f"{text} [{spread.seeds}]"


def records(made: Sequence[Line]) -> list[dict[str, Any]]:
    """Every line as plain values, with those of every seed: what the JSON file holds."""
    return [
        {
            "row": line.row.label,
            "cell": line.cell.name,
            "method": line.row.method,
            "head": line.row.head,
            "seeds": sorted(line.values["seconds"]),
            "noise_rate": None if line.noise_rate is None else line.noise_rate.mean,
            "cost": line.cost,
            "paper": None if line.paper is None else {"mean": line.paper[0], "std": line.paper[1]},
            "measures": {
                name: {
                    "mean": spread.mean,
                    "std": spread.std,
                    "by_seed": {str(seed): value for seed, value in sorted(line.values[name].items())},
                }
                for name in line.values
                if (spread := line.spread(name)) is not None
            },
        }
        for line in made
    ]


def as_csv(made: Sequence[Line]) -> str:
    """One line for every row and cell; mean and spread of every measure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [measure.name for measure in MEASURES]
    columns = [f"{name}_{kind}" for name in names for kind in ("mean", "std")]
    writer.writerow(
        ["row", "cell", "method", "head", "seeds", "noise_rate", *columns, "cost", "paper_mean", "paper_std"]
    )
    for line in made:
        values: list[float | None] = []
        for name in names:
            spread = line.spread(name)
            values += [None, None] if spread is None else [spread.mean, spread.std]
        values += [line.cost, *(line.paper or (None, None))]
        rate = None if line.noise_rate is None else line.noise_rate.mean
        plain = [line.row.label, line.cell.name, line.row.method, line.row.head, len(line.values["seconds"])]
        writer.writerow([*plain, *("" if value is None else round(value, 6) for value in (rate, *values))])
    return text.getvalue()


def write(plan: Plan, found: Iterable[Result], out: Path) -> str:
    """Write `table.md`, `table.csv` and `table.json` into `out`; returns the Markdown."""
    made = lines(plan, found)
    text = markdown(plan, made)
    (out / "table.md").write_text(text, encoding="utf-8")
    (out / "table.csv").write_text(as_csv(made), encoding="utf-8")
    whole = {"title": plan.study.title, "report": plan.study.report, "lines": records(made)}
    (out / "table.json").write_text(json.dumps(whole, indent=1, allow_nan=False), encoding="utf-8")
    return text
