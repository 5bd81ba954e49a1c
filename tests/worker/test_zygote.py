"""Zygote, leash and child: started in milliseconds, told by a socket, and never outliving whom they belong to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import eventually
from tests.worker.harness import ROOT, alive, children
from worker import control_channel
from worker.supervisor.fork_server import Child, ChildRequest, ForkServer

DOUBLES = "tests.worker.doubles"


def errand(name: str) -> ChildRequest:
    return ChildRequest(f"{DOUBLES}.{name}", uuid.uuid4(), 1, None)


@pytest.fixture
def zygote() -> Iterator[ForkServer]:
    made = ForkServer((f"{DOUBLES}.obedient", f"{DOUBLES}.parent"), warm=True)
    yield made
    made.close()


def ended(child: Child, seconds: float = 20.0) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (status := child.wait(0.5)) is not None:
            return status
        child.advanced()
    raise AssertionError("the child goes on")


def parent(child: Child) -> int:
    """The zygote that forked it."""
    (pid,) = [z for z in children(os.getpid()) if child.pid in children(z)]
    return pid


@pytest.mark.parametrize(("word", "status"), [("drain", control_channel.DRAINED), ("cancel", control_channel.STOPPED)])
def test_a_child_hears_what_it_is_told_and_its_status_comes_back(
    zygote: ForkServer, word: control_channel.Command, status: int
) -> None:
    child = zygote.spawn(errand("obedient"))
    child.tell(word)

    assert ended(child) == status
    child.close()


def test_a_child_says_that_it_advances(zygote: ForkServer) -> None:
    child = zygote.spawn(errand("obedient"))

    eventually(child.advanced, what="a beat")
    assert child.kill() == -signal.SIGKILL
    child.close()


def test_killing_a_child_kills_what_it_started(
    zygote: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zygote.close()
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    child = zygote.spawn(errand("parent"))
    pids = [int(pid) for pid in eventually(lambda: read(tmp_path / "pids"), what="both pids")]

    child.kill()

    eventually(lambda: not any(map(alive, pids)), what="the end of the group")
    child.close()


def test_a_child_that_dies_is_reported_with_its_signal(zygote: ForkServer) -> None:
    child = zygote.spawn(errand("obedient"))
    os.kill(child.pid, signal.SIGKILL)

    assert ended(child) == -signal.SIGKILL
    child.close()


def test_a_child_may_end_without_reading_what_it_was_told(zygote: ForkServer) -> None:
    """Its socket is then reset, not closed."""
    child = zygote.spawn(errand("obedient"))
    os.kill(child.pid, signal.SIGSTOP)
    child.tell("cancel")
    os.kill(child.pid, signal.SIGKILL)

    assert ended(child) == -signal.SIGKILL
    child.close()


def test_a_dead_zygote_takes_its_child_along_and_is_started_anew(zygote: ForkServer) -> None:
    child = zygote.spawn(errand("obedient"))
    os.kill(parent(child), signal.SIGKILL)

    assert ended(child) == -signal.SIGKILL
    eventually(lambda: not alive(child.pid), what="the end of the child")
    child.close()
    other = zygote.spawn(errand("obedient"))
    other.tell("cancel")
    assert ended(other) == control_channel.STOPPED
    other.close()


def test_a_zygote_that_has_hung_up_is_started_anew_though_its_process_is_still_there(zygote: ForkServer) -> None:
    """So it is for a moment whenever a zygote is killed; here the moment is held."""
    child = zygote.spawn(errand("obedient"))
    os.kill(parent(child), signal.SIGSTOP)
    child.close()
    zygote.line.shutdown(socket.SHUT_RDWR)

    child = zygote.spawn(errand("obedient"))

    child.tell("cancel")
    assert ended(child) == control_channel.STOPPED
    child.close()


def test_children_die_with_the_supervisor_however_it_ends(tmp_path: Path) -> None:
    """SIGKILL leaves it no time to say anything: socket and kernel do."""
    program = f"""
import time, uuid
from worker.supervisor.fork_server import Errand, Zygote
zygote = Zygote((), warm=True)
child = zygote.spawn(Errand("{DOUBLES}.parent", uuid.uuid4(), 1, None))
time.sleep(600)
"""
    environment = os.environ | {"PIDS": str(tmp_path / "pids")}
    supervisor = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment)
    pids = [int(pid) for pid in eventually(lambda: read(tmp_path / "pids"), what="both pids")]
    pids += children(supervisor.pid)
    supervisor.kill()
    supervisor.wait()

    eventually(lambda: not any(map(alive, pids)), what="the end of zygote, child and grandchild")


def test_a_cold_zygote_starts_a_fresh_process_each_time() -> None:
    cold = ForkServer((f"{DOUBLES}.obedient",), warm=False)
    seen = set()
    for _ in range(2):
        child = cold.spawn(errand("obedient"))
        seen |= {z for z in children(os.getpid()) if child.pid in children(z)}
        child.tell("drain")
        assert ended(child) == control_channel.DRAINED
        child.close()
    cold.close()

    assert len(seen) == 2


@pytest.mark.slow
def test_the_warm_zygote_has_one_thread_and_its_child_computes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork after an OpenMP region hangs; a zygote that imported torch and nothing more does not."""
    monkeypatch.setenv("WARM", str(tmp_path / "warm"))
    warm = ForkServer(("worker.children.job", f"{DOUBLES}.warm"), warm=True)
    warm.prepare()
    child = warm.spawn(errand("warm"))
    assert ended(child) == 0
    child.close()
    warm.close()

    threads, *_ = (tmp_path / "warm").read_text().split()
    assert int(threads) == 1


def read(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
