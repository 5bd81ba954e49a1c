"""Each health check against the real thing it asks, and against its absence."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sqlalchemy import update

from app import healthcheck, settings, worker_registry
from app.db.clock import now
from app.db.session import connect, transaction
from app.db.tables import Worker
from app.settings import Settings
from migrations.__main__ import upgrade
from tests.servers import eventually, free_port
from tests.worker.harness import opened
from tests.worker.inference_server import serving
from worker.heartbeat import Heartbeat, unique_name


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A migrated database that the check under test finds in its environment, as in a container."""
    monkeypatch.setenv("DENLL_DATA_DIR", str(tmp_path))
    settings.current.cache_clear()
    upgrade(settings.current())
    yield settings.current()
    settings.current.cache_clear()


def seen(config: Settings, owner: str, seconds_ago: float) -> None:
    engine = connect(config)
    with transaction(engine) as session:
        session.add(Worker(id=owner, kind="dispatcher", device=None))
        session.flush()
        session.execute(update(Worker).where(Worker.id == owner).values(heartbeat_at=now(-seconds_ago)))
    engine.dispose()


def test_a_process_that_wrote_its_row_lately_is_healthy(database: Settings) -> None:
    seen(database, unique_name(), 1.0)

    assert healthcheck.main(["heartbeat"]) == 0


def test_a_process_silent_for_long_is_not(database: Settings) -> None:
    seen(database, unique_name(), 2 * worker_registry.HEARTBEAT_TIMEOUT_S)

    assert healthcheck.main(["heartbeat"]) == 1


def test_F27_a_process_whose_device_has_a_fault_is_not(database: Settings) -> None:
    engine = connect(database)
    Heartbeat(engine, "supervisor", "cuda", unique_name(), devices=1).beat(fault="the driver is too old")
    engine.dispose()

    assert healthcheck.main(["heartbeat"]) == 1


def test_F27_an_inference_process_that_can_load_no_model_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_driver() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.")

    async def check(device: str) -> int:
        async with serving(tmp_path, device) as port:
            monkeypatch.setenv("DENLL_INFERENCE_LISTEN", f"tcp://127.0.0.1:{port}")
            return await asyncio.to_thread(healthcheck.main, ["inference"])

    monkeypatch.setattr(torch.cuda, "init", no_driver)
    assert asyncio.run(check("cpu")) == 0
    assert asyncio.run(check("cuda")) == 1
    assert "Found no NVIDIA driver" in capsys.readouterr().err


def test_the_heartbeat_of_another_container_does_not_count(database: Settings) -> None:
    seen(database, f"{socket.gethostname()}-2:1:{uuid.uuid4().hex[:8]}", 1.0)

    assert healthcheck.main(["heartbeat"]) == 1


def test_without_a_database_nobody_is_healthy_and_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DENLL_DATABASE_URL", f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    settings.current.cache_clear()
    status = healthcheck.main(["heartbeat"])
    settings.current.cache_clear()

    assert status == 1
    assert capsys.readouterr().err.startswith("DatabaseUnavailable: ")


@pytest.mark.parametrize("kind", ["api", "inference"])
def test_nobody_listening_is_ill(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENLL_PORT", str(free_port()))
    monkeypatch.setenv("DENLL_INFERENCE_LISTEN", f"tcp://0.0.0.0:{free_port()}")

    assert healthcheck.main([kind]) == 1


def test_a_listener_that_never_answers_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as hung:  # the kernel accepts, nobody reads
        monkeypatch.setenv("DENLL_INFERENCE_LISTEN", f"tcp://0.0.0.0:{hung.getsockname()[1]}")

        assert healthcheck.main(["inference"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_inference_process_is_healthy_once_it_listens(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"tcp://0.0.0.0:{free_port()}" if kind == "tcp" else f"unix://{tmp_path}/socket"
    command = [sys.executable, "-m", "app.healthcheck", "inference"]
    limits = {"inference_listen": address, "inference_secret": "known-to-both-ends-alone"}
    with opened(tmp_path, "", "redis://127.0.0.1:1/0", **limits) as harness:
        harness.start("worker.inference")
        for name, value in limits.items():
            monkeypatch.setenv(f"DENLL_{name.upper()}", value)
        eventually(lambda: healthcheck.main(["inference"]) == 0, seconds=90)
        assert subprocess.run(command, env=harness.environment(), check=False).returncode == 0


def test_the_health_check_imports_neither_framework_nor_database() -> None:
    script = "import sys; from app import healthcheck; healthcheck.main(['inference']); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()

    assert not {"fastapi", "pydantic", "sqlalchemy", "torch"} & set(modules)


def test_an_unknown_check_lists_the_checks_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main(["database"]) == 2
    assert "heartbeat" in capsys.readouterr().err
