"""I3: what requests that are built to hurt cost the API, on every route that takes a body or parameters.

A real API process on SQLite. CPU seconds and the growth of memory are those of this process, by /proc; `/livez` is
asked all the while. The figure of a route is its worst request: the largest of CPU, memory and latency, each as a share
of what `tests.request_costs` allows a request of this size.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import request_costs
from tests.benchmarks._sizes import size
from tests.request_costs import MIB, Cost

SIZES = size((64 * 1024, MIB, 64 * MIB), (64 * 1024,))
FIELDS = size(2, 1)  # of each body in JSON, tried one by one


def describe(cost: Cost) -> dict[str, object]:
    shares = {"cpu": cost.cpu_ratio, "memory": cost.memory_ratio, "livez": cost.livez_ratio}
    return {"body": cost.body, "mib": round(cost.size / MIB, 2)} | {
        name: round(share, 2) for name, share in shares.items()
    }


def main() -> int:
    worst: dict[str, Cost] = {}
    with TemporaryDirectory() as folder, request_costs.api(Path(folder)) as service:
        for cost in request_costs.walk(service, SIZES, FIELDS):
            if cost.route not in worst or cost.worst > worst[cost.route].worst:
                worst[cost.route] = cost
    by_route = {route: describe(cost) for route, cost in sorted(worst.items(), key=lambda item: -item[1].worst)}
    measured = round(max(cost.worst for cost in worst.values()), 2)
    line = {"id": "I3", "benchmark": "cost of the worst request, as a share of its limit", "measured": measured}
    print(json.dumps(line | {"target": "<= 1", "met": measured <= 1, "by_route": by_route}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
