"""Fork server, control channel and child: started in milliseconds, stopped over a socket, and leaving no orphan."""

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


def request(name: str) -> ChildRequest:
    return ChildRequest(f"{DOUBLES}.{name}", uuid.uuid4(), 1, None)


@pytest.fixture
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer((f"{DOUBLES}.cooperative", f"{DOUBLES}.with_grandchild"), preload=True)
    yield server
    server.close()


def wait_ended(child: Child, seconds: float = 20.0) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (status := child.wait(0.5)) is not None:
            return status
        child.has_advanced()
    raise AssertionError("the child goes on")


def server_of(child: Child) -> int:
    """The pid of the fork server that forked it."""
    (pid,) = [server for server in children(os.getpid()) if child.pid in children(server)]
    return pid


@pytest.mark.parametrize(
    ("command", "status"), [("drain", control_channel.DRAINED), ("cancel", control_channel.STOPPED)]
)
def test_a_child_receives_a_command_and_its_status_comes_back(
    fork_server: ForkServer, command: control_channel.StopCommand, status: int
) -> None:
    child = fork_server.spawn(request("cooperative"))
    child.send(command)

    assert wait_ended(child) == status
    child.close()


def test_a_child_reports_that_it_advances(fork_server: ForkServer) -> None:
    child = fork_server.spawn(request("cooperative"))

    eventually(child.has_advanced, what="a beat")
    assert child.kill() == -signal.SIGKILL
    child.close()


def test_killing_a_child_kills_what_it_started(
    fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_server.close()
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    child = fork_server.spawn(request("with_grandchild"))
    pids = [int(pid) for pid in eventually(lambda: read(tmp_path / "pids"), what="both pids")]

    child.kill()

    eventually(lambda: not any(map(alive, pids)), what="the end of the group")
    child.close()


def test_a_child_that_dies_is_reported_with_its_signal(fork_server: ForkServer) -> None:
    child = fork_server.spawn(request("cooperative"))
    os.kill(child.pid, signal.SIGKILL)

    assert wait_ended(child) == -signal.SIGKILL
    child.close()


def test_a_child_may_end_without_reading_its_command(fork_server: ForkServer) -> None:
    """Its socket is then reset, not closed."""
    child = fork_server.spawn(request("cooperative"))
    os.kill(child.pid, signal.SIGSTOP)
    child.send("cancel")
    os.kill(child.pid, signal.SIGKILL)

    assert wait_ended(child) == -signal.SIGKILL
    child.close()


def test_a_killed_fork_server_takes_its_child_along_and_is_restarted(fork_server: ForkServer) -> None:
    child = fork_server.spawn(request("cooperative"))
    os.kill(server_of(child), signal.SIGKILL)

    assert wait_ended(child) == -signal.SIGKILL
    eventually(lambda: not alive(child.pid), what="the end of the child")
    child.close()
    other = fork_server.spawn(request("cooperative"))
    other.send("cancel")
    assert wait_ended(other) == control_channel.STOPPED
    other.close()


def test_a_fork_server_that_closed_its_socket_is_restarted_though_its_process_is_still_there(
    fork_server: ForkServer,
) -> None:
    """That is its state for a moment whenever it is killed; here the moment is held."""
    child = fork_server.spawn(request("cooperative"))
    os.kill(server_of(child), signal.SIGSTOP)
    child.close()
    fork_server.connection.shutdown(socket.SHUT_RDWR)

    child = fork_server.spawn(request("cooperative"))

    child.send("cancel")
    assert wait_ended(child) == control_channel.STOPPED
    child.close()


def test_children_die_with_the_supervisor_however_it_ends(tmp_path: Path) -> None:
    """SIGKILL leaves it no time to announce anything; the closed socket and the kernel do."""
    program = f"""
import time, uuid
from worker.supervisor.fork_server import ChildRequest, ForkServer
fork_server = ForkServer((), preload=True)
child = fork_server.spawn(ChildRequest("{DOUBLES}.with_grandchild", uuid.uuid4(), 1, None))
time.sleep(600)
"""
    environment = os.environ | {"PIDS": str(tmp_path / "pids")}
    supervisor = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment)
    pids = [int(pid) for pid in eventually(lambda: read(tmp_path / "pids"), what="both pids")]
    pids += children(supervisor.pid)
    supervisor.kill()
    supervisor.wait()

    eventually(lambda: not any(map(alive, pids)), what="the end of fork server, child and grandchild")


def test_without_preloading_each_child_gets_a_fresh_fork_server() -> None:
    server = ForkServer((f"{DOUBLES}.cooperative",), preload=False)
    pids = set()
    for _ in range(2):
        child = server.spawn(request("cooperative"))
        pids.add(server_of(child))
        child.send("drain")
        assert wait_ended(child) == control_channel.DRAINED
        child.close()
    server.close()

    assert len(pids) == 2


@pytest.mark.slow
def test_a_preloaded_fork_server_has_one_thread_and_its_child_computes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork after an OpenMP region hangs; one of a process that imported torch and did nothing else does not."""
    monkeypatch.setenv("PRELOADED", str(tmp_path / "preloaded"))
    server = ForkServer(("worker.children.job", f"{DOUBLES}.preloaded"), preload=True)
    server.prepare()
    child = server.spawn(request("preloaded"))
    assert wait_ended(child) == 0
    child.close()
    server.close()

    threads, *_ = (tmp_path / "preloaded").read_text().split()
    assert int(threads) == 1


def read(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
