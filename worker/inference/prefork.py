"""The parent of the process that serves predictions: it imports everything, listens, and forks the serving process.

Importing torch takes seconds, forking a process that has it some milliseconds. When the serving process is killed, its
successor has loaded the newest model within a second, and clients that connect meanwhile wait in the listening
sockets, which stay open here. To stay safe to fork, this process has one thread and runs no tensor operator.

When this process is killed, the kernel kills the serving process at once. Under a launcher that starts a new parent,
the serving process continues until the new one has taken over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from app.predictions.frames import Address
from worker import control_channel

log = logging.getLogger(__name__)

Callback = Callable[[], object]

END_SIGNALS = {signal.SIGTERM, signal.SIGINT}
BACKLOG = 1024
STABLE_S = 10.0  # one that served this long is replaced at once
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0


def listen(address: Address) -> list[socket.socket]:
    """Sockets that listen at an address, also while an earlier process still does.

    Raises:
        OSError: The address cannot be bound.
    """
    if address.path is not None:
        listener = socket.socket(socket.AF_UNIX)
        beside = Path(f"{address.path}.{os.getpid()}")
        listener.bind(str(beside))
        beside.chmod(0o600)
        listener.listen(BACKLOG)
        beside.replace(address.path)  # connections to an earlier process stay
        return [listener]
    listeners = []
    places = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, place in places:
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(place)
        listener.listen(BACKLOG)
        listeners.append(listener)
    return listeners


def hold_signals() -> None:
    """Block signals until `keep_serving`; to be called before clients or a launcher can see this process listen."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*END_SIGNALS, signal.SIGCHLD})


def keep_serving(serve: Callback, grace_s: float) -> None:
    """Run `serve` in a forked process, and again whenever that ends, until SIGTERM or SIGINT.

    Args:
        serve: Serves until its process receives SIGTERM.
        grace_s: How long it may take to end.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        pid, started = _fork(serve), time.monotonic()
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if signal.sigwait({*END_SIGNALS, signal.SIGCHLD}) in END_SIGNALS:
                _end(pid, grace_s)
                return
        log.warning("the serving process ended with %d", os.waitstatus_to_exitcode(ended[1]))
        if time.monotonic() - started > STABLE_S:
            pause_s = FIRST_PAUSE_S
        elif signal.sigtimedwait(END_SIGNALS, pause_s) is not None:
            return
        else:
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _fork(serve: Callback) -> int:
    """The pid of a new process that runs `serve`, and that the kernel kills when this one ends."""
    parent = os.getpid()
    if pid := os.fork():
        return pid
    control_channel.die_with_parent()
    status = 1
    try:
        if os.getppid() != parent:  # it ended before the kernel was asked
            return os._exit(status)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        serve()
        status = 0
    except BaseException:  # noqa: BLE001 - the outermost frame of a process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # everything is closed, and unloading torch takes a second


def _end(pid: int, grace_s: float) -> None:
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if signal.sigtimedwait({signal.SIGCHLD}, max(0.0, deadline - time.monotonic())) is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return


def outlive_parent(loop: asyncio.AbstractEventLoop, parent: int, manager: int, seconds: float, end: Callback) -> None:
    """Have a serving process end some time after its parent was killed, and at once when nobody will start another.

    Where this system cannot tell when they end, the serving process still ends with its parent.

    Args:
        loop: The event loop of the serving process.
        parent: The parent's pid.
        manager: The pid of the process that started the parent, and that starts it again.
        seconds: How long it serves on; by then the restarted parent must listen.
        end: Called in the loop when the time has come.
    """
    try:
        parent_ended, manager_ended = os.pidfd_open(parent), os.pidfd_open(manager)
    except (OSError, AttributeError):
        return
    control_channel.die_with_parent(0)

    def serve_on() -> None:
        log.warning("the parent of this process was killed: it serves for %.0f s more", seconds)
        loop.remove_reader(parent_ended)
        loop.add_reader(manager_ended, end)
        loop.call_later(seconds, end)

    loop.add_reader(parent_ended, serve_on)
