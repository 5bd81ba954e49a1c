"""Formats a study's table: Markdown for people, CSV and JSON for programs.

It reads table rows and no result file, so a table can be made wherever the results are.
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
from ml.study.rows import MEASURES, PERCENT, MeanStd, Measure, Result, TableRow, table_rows

NO_VALUE = "–"
FormatCell = Callable[[TableRow], str]
FormatAverage = Callable[[Sequence[TableRow]], str]  # of a method over all cells


def markdown(plan: Plan, rows: Sequence[TableRow]) -> str:
    """A grid of methods and cells for the study's reported measure and every other one that has values."""
    study = plan.study
    text = [f"# {study.title}", ""]
    if study.about:
        text += [study.about.strip(), ""]

    # How many results there are, under which conditions, and what is missing.
    available, planned = sum(len(row.values["seconds"]) for row in rows), sum(row.planned_seeds for row in rows)
    text += [
        f"{available} of {planned} results{_conditions(rows)}. Mean ± sample standard deviation over seeds; [n] where "
        "only n seeds have a result."
    ]
    rates = {row.cell.name: row.noise_rate for row in rows if row.noise_rate is not None}
    if rates:
        listed = ", ".join(f"{name} {PERCENT * rate.mean:.1f} %" for name, rate in rates.items())
        text += ["", f"Wrong labels (realised): {listed}."]
    if plan.faults:
        text += ["", "Not in the table:", *(f"- {fault}" for fault in plan.faults)]

    for measure in MEASURES:
        is_reported = measure.name == study.report
        if is_reported or any(row.values[measure.name] for row in rows):
            text += ["", f"## {measure.title[0].upper()}{measure.title[1:]}", ""]
            with_paper = is_reported and any(row.paper for row in rows)
            if with_paper:
                text += ["In parentheses the paper's number.", ""]
            text += _measure_grid(plan, rows, measure, with_paper)
    if any(row.cost is not None for row in rows):
        text += ["", f"## Cost relative to {study.reference}", ""]
        text += ["Median over seeds of the ratio of these seconds.", "", *_cost_grid(plan, rows)]
    return "\n".join(text) + "\n"


def _conditions(rows: Sequence[TableRow]) -> str:
    """Devices and versions of the results, in parentheses; several versions of the code are counted."""
    conditions = sorted(frozenset[tuple[str, str, str]]().union(*(row.conditions for row in rows)))
    parts = list(dict.fromkeys(f"{device}, torch {torch}" for device, torch, _ in conditions))
    versions = {code for _, _, code in conditions}
    if len(versions) > 1:
        parts.append(f"{len(versions)} versions of the code")
    return f" ({'; '.join(parts)})" if parts else ""


def _measure_grid(plan: Plan, rows: Sequence[TableRow], measure: Measure, with_paper: bool) -> list[str]:
    def format_cell(row: TableRow) -> str:
        paper = ""
        if with_paper and row.paper is not None:
            mean, std = row.paper
            paper = f" ({mean:g})" if std is None else f" ({mean:g} ± {std:g})"
        return _format(row.mean_std(measure.name), row.planned_seeds, measure.digits) + paper

    def format_average(of_method: Sequence[TableRow]) -> str:
        seeds = set.intersection(*(set(row.values[measure.name]) for row in of_method))
        means = [statistics.fmean(row.values[measure.name][seed] for row in of_method) for seed in sorted(seeds)]
        return _format(MeanStd.of(means), max(row.planned_seeds for row in of_method), measure.digits)

    return _grid(plan, rows, format_cell, format_average)


def _cost_grid(plan: Plan, rows: Sequence[TableRow]) -> list[str]:
    def format_average(of_method: Sequence[TableRow]) -> str:
        costs = [row.cost for row in of_method if row.cost is not None]
        return f"{statistics.median(costs):.2f}" if costs else NO_VALUE

    return _grid(plan, rows, lambda row: NO_VALUE if row.cost is None else f"{row.cost:.2f}", format_average)


def _grid(plan: Plan, rows: Sequence[TableRow], format_cell: FormatCell, format_average: FormatAverage) -> list[str]:
    """Methods by cells; with several cells also the average of the methods that have them all."""
    cells = [cell.name for cell in plan.study.cells if any(row.cell.name == cell.name for row in rows)]
    head = ["", *cells, *(["all"] if len(cells) > 1 else [])]
    text = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for method in plan.study.rows:
        by_cell = {row.cell.name: row for row in rows if row.row.label == method.label}
        if by_cell:
            parts = [format_cell(by_cell[name]) if name in by_cell else "" for name in cells]
            if len(cells) > 1:
                parts.append(format_average(list(by_cell.values())) if len(by_cell) == len(cells) else "")
            text.append(f"| {method.label} | {' | '.join(parts)} |")
    return text


def _format(value: MeanStd | None, planned_seeds: int, digits: int) -> str:
    if value is None or math.isnan(value.mean):
        return NO_VALUE
    text = f"{value.mean:.{digits}f}"
    if value.std is not None:
        text += f" ± {value.std:.{digits}f}"
    return text if value.seeds == planned_seeds else f"{text} [{value.seeds}]"


def records(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """Every row as plain values, with those of every seed: what the JSON file holds."""
    return [
        {
            "row": row.row.label,
            "cell": row.cell.name,
            "method": row.row.method,
            "head": row.row.head,
            "seeds": sorted(row.values["seconds"]),
            "noise_rate": None if row.noise_rate is None else row.noise_rate.mean,
            "cost": row.cost,
            "paper": None if row.paper is None else {"mean": row.paper[0], "std": row.paper[1]},
            "measures": {
                name: {
                    "mean": value.mean,
                    "std": value.std,
                    "by_seed": {str(seed): number for seed, number in sorted(row.values[name].items())},
                }
                for name in row.values
                if (value := row.mean_std(name)) is not None
            },
        }
        for row in rows
    ]


def as_csv(rows: Sequence[TableRow]) -> str:
    """One line for every method and cell, with mean and standard deviation of every measure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [measure.name for measure in MEASURES]
    columns = [f"{name}_{kind}" for name in names for kind in ("mean", "std")]
    writer.writerow(
        ["row", "cell", "method", "head", "seeds", "noise_rate", *columns, "cost", "paper_mean", "paper_std"]
    )
    for row in rows:
        numbers: list[float | None] = [None if row.noise_rate is None else row.noise_rate.mean]
        for name in names:
            value = row.mean_std(name)
            numbers += [None, None] if value is None else [value.mean, value.std]
        numbers += [row.cost, *(row.paper or (None, None))]
        labels = [row.row.label, row.cell.name, row.row.method, row.row.head, len(row.values["seconds"])]
        writer.writerow([*labels, *("" if number is None else round(number, 6) for number in numbers)])
    return text.getvalue()


def write(plan: Plan, results: Iterable[Result], out: Path) -> str:
    """Write `table.md`, `table.csv` and `table.json`.

    Args:
        plan: What the table is of.
        results: At most one of each run; see `ml.study.results.select`.
        out: The folder, which must exist.

    Returns:
        The Markdown.
    """
    rows = table_rows(plan, results)
    text = markdown(plan, rows)
    (out / "table.md").write_text(text, encoding="utf-8")
    (out / "table.csv").write_text(as_csv(rows), encoding="utf-8")
    document = {"title": plan.study.title, "report": plan.study.report, "lines": records(rows)}
    (out / "table.json").write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    return text
