"""The fork server: a process that has imported everything a child needs and forks a child in milliseconds.

Importing torch takes seconds; a fork of a process that has it takes about 20 ms, and even that is hidden: one child is
always forked ahead and waits for a request. To stay safe to fork, this process has one thread, has run no tensor
operator and has made no CUDA call.

`multiprocessing`'s forkserver is not used: it imports the supervisor's main module again in every child, hides import
errors, and lets children share its process group. This module is the supervisor's side; `fork_server_main` is the
process. Neither knows what work a child does.

    supervisor -> fork server   a JSON request (module, id, fence, request_id), with the child's socket attached
    fork server -> supervisor   {"ready": true} · {"pid": N} for a request · {"ended": N, "status": S} for a child
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import uuid
from typing import NamedTuple

from app.settings import without_secrets
from worker import control_channel

MESSAGE_BYTES = 4096
READY = b'{"ready": true}'
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # a fork copies one thread, and no thread pool survives it
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait made steps nine times slower on a shared machine
}


class ChildRequest(NamedTuple):
    """What a child is started for.

    Args:
        module: Dotted name of the module whose `main(id, fence, request_id, channel)` the child runs.
        id: Row of the work.
        fence: Number of the claim that the child works under.
        request_id: Id of the HTTP request that submitted the work, for the log.
    """

    module: str
    id: uuid.UUID
    fence: int
    request_id: str | None


class Child:
    """A running child, as its supervisor sees it.

    Args:
        pid: The child's process id, which is also its process group.
        connection: The supervisor's end of the control channel.
        fork_server: The server that forked it and that reports its exit status.
    """

    def __init__(self, pid: int, connection: socket.socket, fork_server: ForkServer) -> None:
        self.pid = pid
        self._connection = connection
        self._fork_server = fork_server

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, command: control_channel.StopCommand) -> None:
        """Send a command; one that cannot be delivered is dropped."""
        with contextlib.suppress(OSError):
            self._connection.send(command[:1].encode(), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def has_advanced(self) -> bool:
        """Whether the child has sent a beat since the last call."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            return bool(self._connection.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT))
        return False

    def wait(self, timeout_s: float) -> int | None:
        """Wait for a beat, the child's end or the timeout.

        Returns:
            The exit status once the child has ended, negative for the signal that killed it; else None.
        """
        connections = [self._connection, self._fork_server.connection]
        ready, _, _ = select.select(connections, [], [], max(0.0, timeout_s))
        if self._fork_server.connection in ready:
            return self._fork_server.wait_ended(self.pid)
        if self._connection in ready and self._is_closed():
            return self._fork_server.wait_ended(self.pid)  # the status is on its way
        return None

    def _is_closed(self) -> bool:
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except ConnectionResetError:  # the child ended without reading the last command
            return True

    def kill(self) -> int:
        """Kill the child and everything it started; its exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._fork_server.wait_ended(self.pid)

    def close(self) -> None:
        self._connection.close()


class ForkServer:
    """The supervisor's end. To be created in its main thread: the kernel's parent-death signal follows that thread.

    Args:
        modules: Modules to import before the first fork; one that defines `preload()` has it called.
        preload: Whether to start at once and keep the server; False starts a bare one for every child.
    """

    def __init__(self, modules: tuple[str, ...], *, preload: bool) -> None:
        self._modules = modules
        self._preload = preload
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self.connection: socket.socket
        if preload:
            self._start()

    def prepare(self) -> None:
        """Wait until children can be started; a server that died is started again.

        To be called before work is claimed, because importing may take longer than a lease.

        Raises:
            OSError: The server cannot be started.
        """
        if not self._is_alive():
            self._start()
        while not self._ready:
            reply = self.connection.recv(MESSAGE_BYTES)
            if not reply:
                raise ChildProcessError("the fork server ended before it was ready")
            self._ready = reply == READY

    def restart_if_dead(self) -> None:
        """Have a server that died while nobody needed it started again, without waiting until it is ready.

        Raises:
            OSError: The server cannot be started.
        """
        if self._preload and not self._is_alive():
            self._start()

    def spawn(self, request: ChildRequest) -> Child:
        """Start one child.

        Raises:
            OSError: The server cannot be started, or ended meanwhile.
        """
        if not self._preload:
            self.close()  # a bare server forks once
        self.prepare()
        ours, theirs = socket.socketpair()
        message = json.dumps(request._asdict() | {"id": str(request.id)})
        try:
            socket.send_fds(self.connection, [message.encode()], [theirs.fileno()])
            return Child(self._receive_pid(), ours, self)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()

    def _receive_pid(self) -> int:
        """The pid of the child just requested; reports of the end of earlier children are skipped."""
        while reply := self.connection.recv(MESSAGE_BYTES):
            if (pid := json.loads(reply).get("pid")) is not None:
                return int(pid)
        raise ChildProcessError("the fork server ended before it answered a request")

    def wait_ended(self, pid: int) -> int:
        """Exit status of a child that has ended or is about to; that of a SIGKILL when the server itself has ended."""
        while reply := self.connection.recv(MESSAGE_BYTES):
            message = json.loads(reply)
            if message.get("ended") == pid:
                return int(message["status"])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        return -signal.SIGKILL

    def _is_alive(self) -> bool:
        """Checks the socket too: a process that is killed closes it a moment before it can be reaped."""
        if self._process is None or self._process.poll() is not None:
            return False
        hang_up = select.poll()
        hang_up.register(self.connection, 0)  # an empty mask still reports a hang-up, also behind unread messages
        return not hang_up.poll(0)

    def close(self) -> None:
        """Kill the server, and with it every child; it may be in the middle of importing, and has nothing to save."""
        if self._process is not None:
            self.connection.close()
            self._process.kill()
            self._process.wait()
            self._process, self._ready = None, False

    def _start(self) -> None:
        self.close()
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [
                sys.executable,
                "-m",
                "worker.supervisor.fork_server_main",
                str(theirs.fileno()),
                *(self._modules if self._preload else ()),
            ]
            environment = without_secrets(os.environ, "database_url", "object_store_secret")  # they notify nobody
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=ENVIRONMENT | environment, start_new_session=True
            )
