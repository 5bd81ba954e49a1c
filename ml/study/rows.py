"""What the results of a row in a cell come to, as one line of the table: figures over seeds, cost, the paper's number.

It trains nothing and lays nothing out: how lines are shown, `table` says.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ml.study.plan import Cell, Entry, Plan, Row, key

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


def _noisy_validation(result: Result, head: str) -> float | None:
    accuracy: float | None = result["epochs"][-1]["noisy_validation"].get(head, {}).get("accuracy")
    return accuracy


def _of_place(name: str) -> Callable[[Result, str], float | None]:
    return lambda result, head: (result.get("located") or {}).get(name)


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
CHOOSING = "noisy validation accuracy, last epoch (what chooses between settings)"
MEASURES = (
    *(Measure(name, f"{title}, %", PERCENT, 1, _summary(name)) for name, title in ACCURACIES.items()),
    Measure("noisy_validation", f"{CHOOSING}, %", PERCENT, 1, _noisy_validation),
    Measure("swapped", "test accuracy with swapped scenes, last epoch, %", PERCENT, 1, _beside("swapped")),
    Measure("repeated", "wrong labels memorised, %", PERCENT, 1, _of_wrong("repeated")),
    Measure(
        "ranking_ap", "ranking of wrong labels, average precision, %", PERCENT, 1, _of_ranking("average_precision")
    ),
    Measure("ranking_auroc", "ranking of wrong labels, AUROC, %", PERCENT, 1, _of_ranking("auroc")),
    Measure("mask_error", "distance of the mask's centre from the object's, pixels", 1.0, 1, _of_place("mask")),
    Measure(
        "picture_error", "distance of the picture's centre from the object's, pixels", 1.0, 1, _of_place("picture")
    ),
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
    """One line for every row in every cell of the plan, in the file's order; of the plan's seeds alone.

    `found` holds one result of a run at most: which data a table is of, `results.chosen` settles.
    """
    by_key = {key(each): each for each in found}
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
