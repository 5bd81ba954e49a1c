"""What Compose, the settings and the operator's page have to agree on: connections and the time to end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.db import session
from app.settings import Settings
from tests.deployment.test_containers import CPU, GPU, LASTING, resolved
from worker.supervisor import supervise

PAGE = (Path(__file__).parents[2] / "docs/deployment.md").read_text()
RESERVED = 3  # connections that Postgres leaves to administrators (superuser_reserved_connections)
ROWS = dict(
    re.findall(r"^\| (`[a-z-]+`)(?:,[^|]*)? \| ([^|]+ \|[^|]*) \|$", PAGE.partition("## Limits")[2], re.MULTILINE)
)
SUPERVISORS = ("supervisor-jobs", "supervisor-datasets")
KINDS = {"dispatcher": "dispatcher", "inference": "inference"} | dict.fromkeys(SUPERVISORS, "supervisor")


def connections() -> dict[str, int]:
    """The most connections of each service, its health check not counted."""
    counts: dict[str, int] = {name: session.CONNECTIONS[kind] for name, kind in KINDS.items()}  # type: ignore[index]
    for name in SUPERVISORS:
        counts[name] += session.CONNECTIONS["child"]
    return counts | {"api": Settings().pool_size, "migrate": session.CONNECTIONS["command"]}


def accepted() -> int:
    command = resolved(GPU)["services"]["postgres"]["command"]
    return int(dict(part.split("=") for part in command if "=" in part)["max_connections"])


def checks() -> int:
    """Health checks that ask the database, each a process of its own."""
    services = resolved(GPU)["services"].values()
    asking = [service for service in services if "heartbeat" in service.get("healthcheck", {}).get("test", ())]
    return len(asking) * session.CONNECTIONS["command"]


def test_postgres_accepts_as_many_connections_as_all_processes_may_open_at_once() -> None:
    assert sum(connections().values()) + checks() < accepted() - RESERVED


def test_an_engine_opens_no_more_connections_than_its_process_may() -> None:
    for process, most in session.CONNECTIONS.items():
        engine = session.connect(Settings(), process)
        assert (engine.pool.size(), engine.pool._max_overflow) == (most, 0)  # type: ignore[attr-defined]
        engine.dispose()


def test_the_page_names_the_connections_of_every_process() -> None:
    for name, count in connections().items():
        numbers = re.findall(r"\d+", ROWS[f"`{name}`"].partition("|")[0])
        assert sum(map(int, numbers)) == count, name
    together = re.search(r"Together they are (\d+), of (\d+) that Postgres accepts", PAGE)
    more = re.search(r"Each supervisor more adds (\d+), each inference process (\d+)", PAGE)

    assert together is not None
    assert more is not None
    assert [int(number) for number in together.groups()] == [sum(connections().values()) + checks() + 1, accepted()]
    assert [int(number) for number in more.groups()] == [
        connections()["supervisor-jobs"] + session.CONNECTIONS["command"],
        connections()["inference"],
    ]


def test_the_page_names_how_long_every_process_may_take_to_end() -> None:
    services = resolved(GPU)["services"]
    for name in (*KINDS, "api"):
        seconds = re.findall(r"(\d+) s", ROWS[f"`{name}`"])
        assert [seconds_of(services[name]["stop_grace_period"])] == [int(number) for number in seconds], name
    assert f"gives its child {Settings().drain_s:.0f} s (`DENLL_DRAIN_S`)" in PAGE


@pytest.mark.parametrize("name", SUPERVISORS)
def test_a_supervisor_has_longer_to_end_than_its_child_and_the_requeue_need(name: str) -> None:
    grace = seconds_of(resolved(GPU)["services"][name]["stop_grace_period"])
    requeue_s = supervise.REQUEUE_TRIES * (Settings().statement_timeout_s + supervise.TICK_S)

    assert Settings().drain_s + Settings().cancel_grace_s + requeue_s < grace
    assert resolved(GPU, STOP_GRACE="5m")["services"][name]["stop_grace_period"] == "5m0s"


def test_cpus_can_be_limited_where_much_is_computed_and_are_where_little_is() -> None:
    chosen = {f"{name}_CPUS": "0.5" for name in ("TRAINING", "INGEST", "INFERENCE", "POSTGRES", "API")}
    for files in (GPU, CPU):
        usual = {name: service.get("cpus", 0) for name, service in resolved(files)["services"].items()}
        limited = {name: service.get("cpus", 0) for name, service in resolved(files, **chosen)["services"].items()}

        assert {name for name, cpus in usual.items() if cpus} == {"redis", "dispatcher", "migrate", "weights"}
        assert {name for name, cpus in limited.items() if cpus == 0.5} == LASTING - {"redis", "dispatcher"}


def seconds_of(duration: str) -> int:
    """Compose's `1m0s` in seconds."""
    match = re.fullmatch(r"(?:(\d+)m)?(\d+)s", duration)
    assert match is not None, duration
    return int(match[1] or 0) * 60 + int(match[2])
