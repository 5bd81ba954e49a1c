"""The rows of a study's table: the results of a method in a cell as means over seeds, cost, and the paper's number.

It trains nothing; `ml.study.table` formats the rows.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ml.study.plan import Cell, MethodRow, Plan, PlanEntry, key

PAPER = Path(__file__).with_name("paper.csv")  # table, row, column, mean, spread (standard deviation), in percent
Result = Mapping[str, Any]  # a result file, see `ml.study.run.run_one`


class MeanStd(NamedTuple):
    """Mean and sample standard deviation over seeds."""

    mean: float
    std: float | None  # None of a single value
    seeds: int  # number of values

    @classmethod
    def of(cls, values: Iterable[float | None]) -> MeanStd | None:
        """Of the values that are not None; None if there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


class Measure(NamedTuple):
    """A number that tables show."""

    name: str  # in CSV and JSON
    title: str  # in Markdown, with the unit
    scale: float  # from the result's unit to the table's
    digits: int  # after the point
    read: Callable[[Result, str], float | None]  # from a result, for one of the method's heads


def _summary(name: str) -> Callable[[Result, str], float | None]:
    return lambda result, head: result["heads"].get(head, {}).get(name)


def _of_wrong_labels(name: str) -> Callable[[Result, str], float | None]:
    return lambda result, head: (result["wrong_labels"] or {}).get(head, {}).get(name)


def _of_ranking(name: str) -> Callable[[Result, str], float | None]:
    return lambda result, head: (result["ranking"] or {}).get(name)


def _of_extra_test_set(name: str) -> Callable[[Result, str], float | None]:
    return lambda result, head: result["beside"].get(name, {}).get(head, {}).get("accuracy")


def _noisy_validation(result: Result, head: str) -> float | None:
    accuracy: float | None = result["epochs"][-1]["noisy_validation"].get(head, {}).get("accuracy")
    return accuracy


def _of_location(name: str) -> Callable[[Result, str], float | None]:
    return lambda result, head: (result.get("located") or {}).get(name)


def _training_seconds(result: Result) -> float:
    """CPU seconds of a training on a CPU, since other work on the machine changes them least; otherwise wall-clock."""
    seconds: float = result["seconds"]["cpu" if result["facts"]["device"] == "cpu" else "wall"]
    return seconds


PERCENT = 100.0
ACCURACIES = {
    "last": "test accuracy, last epoch",
    "best_noisy_val": "test accuracy at the best noisy-validation epoch",
    "best_test": "best test accuracy (reported, never used to choose)",
    "mean_last10": "test accuracy, mean of the last ten epochs",
}
NOISY_VALIDATION = "noisy validation accuracy, last epoch (by which settings are chosen)"
MEASURES = (
    *(Measure(name, f"{title}, %", PERCENT, 1, _summary(name)) for name, title in ACCURACIES.items()),
    Measure("noisy_validation", f"{NOISY_VALIDATION}, %", PERCENT, 1, _noisy_validation),
    Measure("swapped", "test accuracy with swapped scenes, last epoch, %", PERCENT, 1, _of_extra_test_set("swapped")),
    Measure("repeated", "wrong labels memorised, %", PERCENT, 1, _of_wrong_labels("repeated")),
    Measure(
        "ranking_ap", "ranking of wrong labels, average precision, %", PERCENT, 1, _of_ranking("average_precision")
    ),
    Measure("ranking_auroc", "ranking of wrong labels, AUROC, %", PERCENT, 1, _of_ranking("auroc")),
    Measure("mask_error", "distance of the mask's centre from the object's, pixels", 1.0, 1, _of_location("mask")),
    Measure(
        "picture_error", "distance of the picture's centre from the object's, pixels", 1.0, 1, _of_location("picture")
    ),
    Measure(
        "seconds",
        "seconds of training: of CPU, or on a GPU of time",
        1.0,
        0,
        lambda result, head: _training_seconds(result),
    ),
)


@dataclass(frozen=True)
class TableRow:
    """A method of the study in one of its cells."""

    row: MethodRow
    cell: Cell
    planned_seeds: int  # how many seeds the study has
    values: Mapping[str, Mapping[int, float]]  # by measure and seed, in the table's units
    noise_rate: MeanStd | None  # realised, in [0, 1]
    cost: float | None  # median over seeds of its seconds divided by the reference row's
    paper: tuple[float, float | None] | None  # mean and standard deviation in percent
    conditions: frozenset[tuple[str, str, str]]  # device, version of torch and version of `ml` of each result

    def mean_std(self, name: str) -> MeanStd | None:
        """Of one measure over the seeds that have a result."""
        return MeanStd.of(self.values[name].values())


def table_rows(plan: Plan, results: Iterable[Result]) -> list[TableRow]:
    """One row for every method in every cell of the plan, in the order of the study file.

    Args:
        plan: Seeds that it does not have are ignored.
        results: At most one of each run; see `ml.study.results.select`.
    """
    # Results by row, cell and seed.
    by_key = {key(result): result for result in results}
    available: dict[tuple[str, str], dict[int, Result]] = {}
    planned: dict[tuple[str, str], list[PlanEntry]] = {}
    for entry in plan.entries:
        position = (entry.row.label, entry.cell.name)
        planned.setdefault(position, []).append(entry)
        if entry.run.key in by_key:
            available.setdefault(position, {})[entry.seed] = by_key[entry.run.key]

    paper = paper_numbers()
    rows = []
    for row in plan.study.rows:
        for cell in plan.study.cells:
            if (position := (row.label, cell.name)) in planned:
                by_seed = available.get(position, {})
                reference = available.get((plan.study.reference, cell.name), {})
                published = paper.get((plan.study.paper or "", row.paper or row.label, cell.paper or cell.name))
                rows.append(_table_row(row, cell, len(planned[position]), by_seed, reference, published))
    return rows


def _table_row(
    row: MethodRow,
    cell: Cell,
    planned_seeds: int,
    by_seed: Mapping[int, Result],
    reference: Mapping[int, Result],
    paper: tuple[float, float | None] | None,
) -> TableRow:
    """The row of these results by seed; those of the row that costs are relative to are `reference`."""
    # Measures in the table's units.
    values: dict[str, dict[int, float]] = {}
    for measure in MEASURES:
        numbers = {seed: measure.read(result, row.head) for seed, result in by_seed.items()}
        values[measure.name] = {s: v * measure.scale for s, v in numbers.items() if v is not None}

    # Cost, from seeds that both have.
    ratios = [
        _training_seconds(result) / _training_seconds(reference[seed])
        for seed, result in by_seed.items()
        if seed in reference and _training_seconds(reference[seed]) > 0
    ]
    return TableRow(
        row=row,
        cell=cell,
        planned_seeds=planned_seeds,
        values=values,
        noise_rate=MeanStd.of(result["facts"]["noise_rate"] for result in by_seed.values()),
        cost=statistics.median(ratios) if ratios else None,
        paper=paper,
        conditions=frozenset(
            (result["facts"]["device"], result["facts"]["torch"], result["code"]) for result in by_seed.values()
        ),
    )


def paper_numbers() -> dict[tuple[str, str, str], tuple[float, float | None]]:
    """The paper's accuracies in percent, mean and standard deviation, by table, row and column."""
    with PAPER.open(encoding="utf-8", newline="") as file:
        return {
            (line["table"], line["row"], line["column"]): (
                float(line["mean"]),
                float(line["spread"]) if line["spread"] else None,
            )
            for line in csv.DictReader(file)
        }
