"""Checks of injected noise that a schema cannot express.

The catalog says which field a kind of noise needs, and for how many classes it is if it is not for any number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.catalog import Catalog
from app.errors import Fault, InvalidRequest
from app.http import problems

FIELDS = ("rate", "matrix")


def check(noise: dict[str, Any] | None, classes: int | None, catalog: Catalog) -> None:
    """Raise InvalidRequest, with a pointer for each fault, unless the noise can be injected.

    Args:
        noise: The request's `noise`: kind, and rate or matrix; None injects nothing.
        classes: Number of classes of the data set; None where it is unknown.
    """
    if noise is None:
        return
    about = next(entry for entry in catalog.noises if entry["kind"] == noise["kind"])
    needed = about.get("needs", "rate")
    faults = [
        _field_fault(field, about["kind"], needed)
        for field in FIELDS
        if (noise.get(field) is None) is (field == needed)
    ]
    if classes is not None and about.get("classes", classes) != classes:
        detail = f"{about['kind']} noise is for {about['classes']} classes; the data set has {classes}."
        faults.append(Fault("/noise/kind", "does_not_fit", detail))
    if not faults and noise.get("matrix") is not None:
        faults = _matrix_faults(noise["matrix"], classes, about.get("row_sum_tolerance", 0.0))
    if faults:
        raise InvalidRequest(problems.summary(faults), errors=faults)


def _field_fault(field: str, kind: str, needed: str) -> Fault:
    if field == needed:
        return Fault(f"/noise/{field}", "required", f"{kind} noise needs this field.")
    return Fault(f"/noise/{field}", "not_used", f"{kind} noise has {needed}, not {field}.")


def _matrix_faults(matrix: Sequence[Sequence[float]], classes: int | None, tolerance: float) -> list[Fault]:
    """Faults of a transition matrix: it must be square with a row for each class, and every row must sum to 1."""
    size = len(matrix) if classes is None else classes
    if len(matrix) != size:
        return [Fault("/noise/matrix", "does_not_fit", f"It has {len(matrix)} rows; the data set has {size} classes.")]
    faults = []
    for number, row in enumerate(matrix):
        pointer = f"/noise/matrix/{number}"
        if len(row) != size:
            detail = f"It has {len(row)} columns; the data set has {size} classes."
            faults.append(Fault(pointer, "does_not_fit", detail))
        elif abs(sum(row) - 1) > tolerance:
            faults.append(Fault(pointer, "row_sum", f"The row sums to {sum(row):.4g}, not to 1."))
    return faults
