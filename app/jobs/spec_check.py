"""Settings of a job and its baselines that exclude each other, which a schema cannot express; `ml` refuses the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.catalog import Catalog
from app.errors import Fault, InvalidRequest
from app.http import problems
from ml.formats import spec_rules


def check(bodies: Sequence[dict[str, Any]], catalog: Catalog) -> None:
    """Raise InvalidRequest with a pointer for each fault.

    Args:
        bodies: The request and then its baselines, each with every default filled in.
        catalog: What methods need and do.
    """
    faults: dict[str, Fault] = {}
    for number, body in enumerate(bodies):
        for field, code, detail in spec_rules.find_contradictions(
            body,
            catalog.methods[body["method"]].get("frozen_backbone", {}),
            mixes=catalog.mixes(body["method"], body["params"]),
        ):
            # params are a baseline's own; every other field is the request's
            own = f"/compare_with/{number - 1}" if number and field.startswith("params/") else ""
            faults.setdefault(f"{own}/{field}", Fault(f"{own}/{field}", code, detail))
    if faults:
        raise InvalidRequest(problems.summary(list(faults.values())), errors=list(faults.values()))
