"""What a request for injected noise must say, beyond what a schema can: which field its kind needs, and that it fits
the data set's classes. What a kind does to labels is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.catalog import Catalog
from app.errors import Fault, InvalidRequest
from app.http import problems

FIELDS = ("rate", "matrix")
ROW_SUM_OFF = 1e-3  # what rounding may leave of a row's sum


def check(noise: dict[str, Any] | None, classes: int | None, catalog: Catalog) -> None:
    """InvalidRequest with a pointer for each fault; `classes` is how many the data set has."""
    if noise is None:
        return
    kind = next(each for each in catalog.noises if each["kind"] == noise["kind"])
    needed = kind.get("needs", "rate")
    faults = [
        _about(field, kind["kind"], needed) for field in FIELDS if (noise.get(field) is None) is (field == needed)
    ]
    if classes is not None and kind.get("classes", classes) != classes:
        wanted = f"{kind['kind']} noise is for {kind['classes']} classes; the data set has {classes}."
        faults.append(Fault("/noise/kind", "does_not_fit", wanted))
    if not faults and noise.get("matrix") is not None:
        faults = _of_matrix(noise["matrix"], classes)
    if faults:
        raise InvalidRequest(problems.summary(faults), errors=faults)


def _about(field: str, kind: str, needed: str) -> Fault:
    if field == needed:
        return Fault(f"/noise/{field}", "required", f"{kind} noise needs this field.")
    return Fault(f"/noise/{field}", "not_used", f"{kind} noise has {needed}, not {field}.")


def _of_matrix(matrix: Sequence[Sequence[float]], classes: int | None) -> list[Fault]:
    """Square, one row and one column a class, every row a distribution."""
    size = len(matrix) if classes is None else classes
    if len(matrix) != size:
        return [Fault("/noise/matrix", "does_not_fit", f"It has {len(matrix)} rows; the data set has {size} classes.")]
    faults = []
    for number, row in enumerate(matrix):
        at = f"/noise/matrix/{number}"
        if len(row) != size:
            faults.append(Fault(at, "does_not_fit", f"It has {len(row)} columns; the data set has {size} classes."))
        elif abs(sum(row) - 1) > ROW_SUM_OFF:
            faults.append(Fault(at, "row_sum", f"The row sums to {sum(row):.4g}, not to 1."))
    return faults
