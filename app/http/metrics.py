"""Metrics of this process's HTTP requests, and the Prometheus text format."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metric(NamedTuple):
    """One metric: each sample is its labels and its value."""

    name: str
    kind: str  # counter or gauge
    help: str
    samples: Iterable[tuple[Mapping[str, str], float]]


class RequestMetrics:
    """Counts requests by method, route and status, and the time that they took by method and route."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str, int], int] = defaultdict(int)
        self._seconds: dict[tuple[str, str], float] = defaultdict(float)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; `route` is the path of its route, such as `/jobs/{job_id}`, and `seconds` what it took."""
        known = method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} else "other"
        with self._lock:
            self._requests[known, route, status] += 1
            self._seconds[known, route] += seconds

    def metrics(self) -> list[Metric]:
        with self._lock:
            requests, seconds = dict(self._requests), dict(self._seconds)
        counted = [({"method": m, "route": r, "status": str(s)}, float(n)) for (m, r, s), n in requests.items()]
        spent = [({"method": m, "route": r}, total) for (m, r), total in seconds.items()]
        return [
            Metric("denll_http_requests_total", "counter", "Requests handled, by route and status", counted),
            Metric("denll_http_request_seconds_total", "counter", "Time spent on requests, by route", spent),
        ]


def render(metrics: Iterable[Metric]) -> str:
    """The metrics in the Prometheus text format."""
    lines: list[str] = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        for labels, value in metric.samples:
            inner = ",".join(f'{name}="{escape_label(text)}"' for name, text in labels.items())
            lines.append(f"{metric.name}{{{inner}}} {value:g}" if inner else f"{metric.name} {value:g}")
    return "\n".join(lines) + "\n"


def escape_label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
