"""The fork server's process: imports, forks a child for every request, and reports how each ended.

One child is always forked ahead and waits for a request. This process must stay safe to fork: one thread, no tensor
operator run, no CUDA call made. `worker.supervisor.fork_server` starts it, and has the messages between the two.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
import uuid
from pathlib import Path
from typing import NamedTuple, NoReturn

from worker import control_channel
from worker.supervisor.fork_server import MESSAGE_BYTES, READY


class PreforkedChild(NamedTuple):
    """A child that waits for its request; `connection` is the server's end of a socket to it."""

    pid: int
    connection: socket.socket

    def assign(self, request: bytes, descriptors: list[int]) -> bool:
        """Hand over a request, with the descriptor of its control channel; False when the child has died meanwhile."""
        with self.connection:
            try:
                socket.send_fds(self.connection, [request], descriptors)
            except OSError:
                return False
        return True


def serve(supervisor: socket.socket, modules: list[str]) -> NoReturn:
    """Fork a child for every request and report how each ended, until the supervisor closes its end.

    Args:
        supervisor: Sequenced-packet socket to the supervisor.
        modules: Modules to import before the first fork.
    """
    # Import. Until it is done, a kill by the kernel is the quickest way to end with the supervisor.
    control_channel.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides what a Ctrl-C means
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.disable()  # imports leave little garbage, and looking for it takes a quarter of their time
    for name in modules:
        module = importlib.import_module(name)
        getattr(module, "preload", lambda: None)()  # what the module would import only when it is used
    gc.collect()
    gc.freeze()  # a child that collects garbage would touch, and so copy, every page of what was imported
    gc.enable()

    # From here on the end of the stream announces the supervisor's end: that leaves time to kill the children's groups.
    control_channel.die_with_parent(0)
    supervisor.send(READY)

    # Let the end of a child wake the loop: each SIGCHLD writes a byte into a pipe.
    children: set[int] = set()
    child_ended, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    preforked = _fork(supervisor, children)
    while True:
        ready, _, _ = select.select([supervisor.fileno(), child_ended], [], [])

        # Reap first: when the preforked child has died, assigning to it fails below and another is forked.
        if child_ended in ready:
            os.read(child_ended, MESSAGE_BYTES)
            children -= _reap(supervisor, preforked.pid)

        # One request: hand it to the child forked ahead, answer with its pid, and fork the next one.
        if supervisor.fileno() in ready:
            request, descriptors, _, _ = socket.recv_fds(supervisor, MESSAGE_BYTES, 1)
            if not request:
                for pid in children:
                    _kill_group(pid)
                os._exit(0)  # nothing else to clean up, and unloading torch takes a second
            while not preforked.assign(request, descriptors):
                preforked = _fork(supervisor, children)
            os.close(descriptors[0])
            supervisor.send(json.dumps({"pid": preforked.pid}).encode())
            preforked = _fork(supervisor, children)


def _fork(supervisor: socket.socket, children: set[int]) -> PreforkedChild:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        supervisor.close()
        ours.close()
        _run_child(theirs)
    theirs.close()
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)  # here as well as in the child, so that the group exists before anybody kills it
    children.add(pid)
    return PreforkedChild(pid, ours)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _reap(supervisor: socket.socket, preforked: int) -> set[int]:
    """Reap every ended child and report it, except the preforked one: the supervisor does not know of that one."""
    ended_pids: set[int] = set()
    with contextlib.suppress(ChildProcessError, BrokenPipeError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            _kill_group(ended.si_pid)  # the processes it left running; until it is reaped nobody else gets its pid
            _, status = os.waitpid(ended.si_pid, 0)
            ended_pids.add(ended.si_pid)
            if ended.si_pid != preforked:
                message = {"ended": ended.si_pid, "status": os.waitstatus_to_exitcode(status)}
                supervisor.send(json.dumps(message).encode())
    return ended_pids


def _run_child(requests: socket.socket) -> NoReturn:
    """Wait for the request, run its module's `main`, and exit with the status it returns."""
    status = 1
    try:
        with contextlib.suppress(PermissionError):  # already a group leader: the server was faster
            os.setpgid(0, 0)
        control_channel.die_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _set_process_name("denll-preforked")
        with requests:
            message, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 1)
        if not message:
            os._exit(0)  # the server has ended
        _set_process_name("denll-child")
        request, connection = json.loads(message), socket.socket(fileno=descriptors[0])
        main = importlib.import_module(request["module"]).main
        channel = control_channel.ControlChannel(connection)
        status = main(uuid.UUID(request["id"]), int(request["fence"]), request["request_id"], channel)
    except BaseException:  # noqa: BLE001 - the outermost frame of a process; nothing may reach the server's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _set_process_name(name: str) -> None:
    """The name that `ps` and `top` show, at most 15 characters."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
