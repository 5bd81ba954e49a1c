"""From result files to a table: mean and spread over seeds, the paper's number beside ours, and what it cost.

It trains nothing and reads no picture: a table can be made wherever the results are.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ml.study.plan import Cell, Entry, Plan, Row

PAPER = Path(__file__).with_name("paper.csv")  # table, row, column, mean, spread: accuracies in percent
Result = Mapping[str, Any]


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds; no spread of one value."""

    mean: float
    std: float | None
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


class Measure(NamedTuple):
    """A figure of one run as one row reports it: its name, what it is called in the table, and by what to multiply."""

    name: str
    title: str
    scale: float
    digits: int
    read: Callable[[Result, str], float | None]


def _summary(name: str) -> Callable[[Result, str], float | None]:
    return lambda result, head: result["heads"].get(head, {}).get(name)


def _of_wrong(name: str) -> Callable[[Result, str], float | None]:
    return lambda result, head: (result["wrong_labels"] or {}).get(head, {}).get(name)


def _of_ranking(name: str) -> Callable[[Result, str], float | None]:
    return lambda result, head: (result["ranking"] or {}).get(name)


def _beside(name: str) -> Callable[[Result, str], float | None]:
    return lambda result, head: result["beside"].get(name, {}).get(head, {}).get("accuracy")


def _spent(result: Result) -> float:
    """What other work on the machine changes least: CPU seconds, where the CPU does the work."""
    seconds: float = result["seconds"]["cpu" if result["facts"]["device"] == "cpu" else "wall"]
    return seconds


PERCENT = 100.0
ACCURACIES = {
    "last": "test accuracy, last epoch",
    "best_noisy_val": "test accuracy at the best noisy-validation epoch",
    "best_test": "best test accuracy (shown, never used to choose)",
    "mean_last10": "test accuracy, mean of the last ten epochs",
}
MEASURES = (
    *(Measure(name, f"{title}, %", PERCENT, 1, _summary(name)) for name, title in ACCURACIES.items()),
    Measure("swapped", "test accuracy with swapped scenes, last epoch, %", PERCENT, 1, _beside("swapped")),
    Measure("repeated", "wrong labels learned by heart, %", PERCENT, 1, _of_wrong("repeated")),
    Measure(
        "ranking_ap", "ranking of wrong labels, average precision, %", PERCENT, 1, _of_ranking("average_precision")
    ),
    Measure("ranking_auroc", "ranking of wrong labels, AUROC, %", PERCENT, 1, _of_ranking("auroc")),
    Measure("seconds", "seconds of training: of CPU, or on a GPU of time", 1.0, 0, lambda result, head: _spent(result)),
)


@dataclass(frozen=True)
class Line:
    """A row of the study in one of its cells."""

    row: Row
    cell: Cell
    wanted: int  # seeds the study asks for
    values: Mapping[str, Mapping[int, float]]  # by measure and seed, as the table shows them
    noise_rate: Spread | None
    cost: float | None  # median over seeds of its seconds over the reference row's
    paper: tuple[float, float | None] | None
    conditions: frozenset[tuple[str, str, str]]  # device, version of torch and of our code of each result

    def spread(self, name: str) -> Spread | None:
        return Spread.of(self.values[name].values())


def lines(plan: Plan, found: Iterable[Result]) -> list[Line]:
    """One line for every row in every cell of the plan, in the file's order; of the plan's seeds alone."""
    by_key = {json.dumps({"spec": each["spec"], "data": each["data"]}, sort_keys=True): each for each in found}
    known: dict[tuple[str, str], dict[int, Result]] = {}
    wanted: dict[tuple[str, str], list[Entry]] = {}
    for entry in plan.entries:
        place = (entry.row.label, entry.cell.name)
        wanted.setdefault(place, []).append(entry)
        if entry.run.key in by_key:
            known.setdefault(place, {})[entry.seed] = by_key[entry.run.key]
    paper = paper_numbers()
    made = []
    for row in plan.study.rows:
        for cell in plan.study.cells:
            if (place := (row.label, cell.name)) not in wanted:
                continue
            results = known.get(place, {})
            units = known.get((plan.study.reference, cell.name), {})
            values: dict[str, dict[int, float]] = {}
            for measure in MEASURES:
                read = {seed: measure.read(result, row.head) for seed, result in results.items()}
                values[measure.name] = {s: v * measure.scale for s, v in read.items() if v is not None}
            ratios = [_spent(result) / _spent(units[seed]) for seed, result in results.items() if seed in units]
            made.append(
                Line(
                    row,
                    cell,
                    len(wanted[place]),
                    values,
                    Spread.of(result["facts"]["noise_rate"] for result in results.values()),
                    statistics.median(ratios) if ratios else None,
                    paper.get((plan.study.paper or "", row.paper or row.label, cell.paper or cell.name)),
                    frozenset((r["facts"]["device"], r["facts"]["torch"], r["code"]) for r in results.values()),
                )
            )
    return made


def paper_numbers() -> dict[tuple[str, str, str], tuple[float, float | None]]:
    """The paper's accuracies in percent, mean and spread, by table, row and column."""
    with PAPER.open(encoding="utf-8", newline="") as file:
        return {
            (line["table"], line["row"], line["column"]): (
                float(line["mean"]),
                float(line["spread"]) if line["spread"] else None,
            )
            for line in csv.DictReader(file)
        }


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


def records(plan: Plan, made: Sequence[Line]) -> list[dict[str, Any]]:
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
    whole = {"title": plan.study.title, "report": plan.study.report, "lines": records(plan, made)}
    (out / "table.json").write_text(json.dumps(whole, indent=1, allow_nan=False), encoding="utf-8")
    return text
