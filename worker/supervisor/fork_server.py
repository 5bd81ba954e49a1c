"""The warm zygote: a process that has imported everything a child needs, has one thread, has run no operator and made
no CUDA call, and forks a child in milliseconds instead of the seconds that importing torch takes. Even those, some 20
for a process of this size, nobody waits for: one child is always forked ahead and waits for its errand.

Our own loop instead of `multiprocessing`'s forkserver, because that one imports the supervisor's main module again in
every child, hides import errors, and lets children share its process group. What a child does is not known here.
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
import subprocess
import sys
import traceback
import uuid
from pathlib import Path
from typing import NamedTuple, NoReturn

from worker import control_channel

MESSAGE_BYTES = 4096
READY = b'{"ready": true}'
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # a fork copies one thread, and no pool survives it
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait made steps nine times slower on a shared machine
}


class ChildRequest(NamedTuple):
    """What a child is for: the module whose `main` it runs, and the claim it works under."""

    module: str
    id: uuid.UUID
    fence: int
    request_id: str | None


class Child:
    """A running child, seen by its supervisor."""

    def __init__(self, pid: int, line: socket.socket, zygote: ForkServer) -> None:
        self.pid = pid
        self._line = line
        self._zygote = zygote

    def fileno(self) -> int:
        return self._line.fileno()

    def tell(self, word: control_channel.Command) -> None:
        with contextlib.suppress(OSError):
            self._line.send(word[:1].encode(), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def advanced(self) -> bool:
        """Whether the child has beaten since the last look."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            return bool(self._line.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT))
        return False

    def wait(self, seconds: float) -> int | None:
        """Wait for a beat, the end or the time; the exit status once ended: negative is the signal that killed it."""
        lines = [self._line, self._zygote.line]
        ready, _, _ = select.select(lines, [], [], max(0.0, seconds))
        if self._zygote.line in ready:
            return self._zygote.ended(self.pid)
        if self._line in ready and self._closed():
            return self._zygote.ended(self.pid)  # the status is on its way
        return None

    def _closed(self) -> bool:
        try:
            return not self._line.recv(1, socket.MSG_PEEK)
        except ConnectionResetError:  # it ended without reading what it was told last
            return True

    def kill(self) -> int:
        """End the child and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._zygote.ended(self.pid)

    def close(self) -> None:
        self._line.close()


class ForkServer:
    """The supervisor's end. Started from its main thread, because the kernel's death signal follows that thread."""

    def __init__(self, modules: tuple[str, ...], *, warm: bool) -> None:
        self._modules = modules
        self._warm = warm
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self.line: socket.socket
        if warm:
            self._start()

    def prepare(self) -> None:
        """Wait until children can be started; a zygote that died is started anew. OSError when it cannot start.

        To be called before work is claimed: importing may take longer than a lease.
        """
        if not self._alive():
            self._start()
        while not self._ready:
            reply = self.line.recv(MESSAGE_BYTES)
            if not reply:
                raise ChildProcessError("the zygote ended before it was ready")
            self._ready = reply == READY

    def spawn(self, errand: ChildRequest) -> Child:
        """Start one child."""
        if not self._warm:
            self.close()  # a cold zygote forks once
        self.prepare()
        ours, theirs = socket.socketpair()
        request = json.dumps(
            {"module": errand.module, "id": str(errand.id), "fence": errand.fence, "request_id": errand.request_id}
        )
        try:
            socket.send_fds(self.line, [request.encode()], [theirs.fileno()])
            return Child(self._forked(), ours, self)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()

    def _forked(self) -> int:
        """The pid of the child just asked for; news of earlier ones that nobody awaited is skipped."""
        while reply := self.line.recv(MESSAGE_BYTES):
            if (pid := json.loads(reply).get("pid")) is not None:
                return int(pid)
        raise ChildProcessError("the zygote ended while it was asked for a child")

    def ended(self, pid: int) -> int:
        """Exit status of a child that has ended or is about to; SIGKILL's when the zygote itself is gone."""
        while reply := self.line.recv(MESSAGE_BYTES):
            message = json.loads(reply)
            if message.get("ended") == pid:
                return int(message["status"])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        return -signal.SIGKILL

    def _alive(self) -> bool:
        """By its line too: a process that is killed hangs up a moment before it can be collected."""
        if self._process is None or self._process.poll() is not None:
            return False
        line = select.poll()
        line.register(self.line, 0)  # a hang-up is reported unasked, and behind news that nobody has read yet
        return not line.poll(0)

    def close(self) -> None:
        if self._process is not None:
            self.line.close()
            self._process.kill()  # it has nothing to tidy, and may be importing still
            self._process.wait()
            self._process, self._ready = None, False

    def _start(self) -> None:
        self.close()
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [
                sys.executable,
                "-m",
                "worker.supervisor.fork_server",
                str(theirs.fileno()),
                *(self._modules if self._warm else ()),
            ]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=ENVIRONMENT | os.environ, start_new_session=True
            )


def serve(line: socket.socket, modules: list[str]) -> None:
    """Fork a child for every request and report how each ended, until the supervisor closes the line."""
    control_channel.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the supervisor's to interpret
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for name in modules:
        module = importlib.import_module(name)
        getattr(module, "warm", lambda: None)()  # what it would import only when it is used
    gc.collect()
    gc.freeze()  # a child that collects garbage would touch, and so copy, every page of what was imported
    control_channel.die_with_parent(
        0
    )  # from here on the end of the line says so, and leaves time to end the children's groups
    line.send(READY)
    forked: set[int] = set()
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    spare = _fork(line, forked)
    while True:
        ready, _, _ = select.select([line.fileno(), wake], [], [])
        if wake in ready:
            os.read(wake, MESSAGE_BYTES)
            forked -= _report_ended(line, spare.pid)
        if line.fileno() in ready:
            request, descriptors, _, _ = socket.recv_fds(line, MESSAGE_BYTES, 1)
            if not request:
                for child in forked:
                    _kill_group(child)
                os._exit(0)  # nothing else to tidy, and unloading torch takes a second
            while not spare.take(request, descriptors):
                spare = _fork(line, forked)
            os.close(descriptors[0])
            line.send(json.dumps({"pid": spare.pid}).encode())
            spare = _fork(line, forked)


class Spare(NamedTuple):
    """A child that waits for its errand."""

    pid: int
    line: socket.socket

    def take(self, request: bytes, descriptors: list[int]) -> bool:
        """Send it on its errand; False when it has died meanwhile."""
        with self.line:
            try:
                socket.send_fds(self.line, [request], descriptors)
            except OSError:
                return False
        return True


def _fork(line: socket.socket, forked: set[int]) -> Spare:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        line.close()
        ours.close()
        _become_child(theirs)
    theirs.close()
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)  # also here, so that the group exists before anybody may want to kill it
    forked.add(pid)
    return Spare(pid, ours)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _report_ended(line: socket.socket, spare: int) -> set[int]:
    """Collect who has ended, and tell the supervisor of all but the spare: it knows nothing of that one."""
    gone: set[int] = set()
    with contextlib.suppress(ChildProcessError, BrokenPipeError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            _kill_group(ended.si_pid)  # what it left behind; the pid is ours until we collect it
            _, status = os.waitpid(ended.si_pid, 0)
            gone.add(ended.si_pid)
            if ended.si_pid != spare:
                line.send(json.dumps({"ended": ended.si_pid, "status": os.waitstatus_to_exitcode(status)}).encode())
    return gone


def _become_child(errands: socket.socket) -> NoReturn:
    status = 1
    try:
        with contextlib.suppress(PermissionError):  # already a group leader: the zygote was faster
            os.setpgid(0, 0)
        control_channel.die_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _call_itself("denll-spare")
        with errands:
            message, descriptors, _, _ = socket.recv_fds(errands, MESSAGE_BYTES, 1)
        if not message:
            os._exit(0)  # the zygote is gone
        _call_itself("denll-child")
        request, line = json.loads(message), socket.socket(fileno=descriptors[0])
        main = importlib.import_module(request["module"]).main
        status = main(
            uuid.UUID(request["id"]), int(request["fence"]), request["request_id"], control_channel.ControlChannel(line)
        )
    except BaseException:  # noqa: BLE001 - the outermost frame of a process; nothing may reach the zygote's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _call_itself(name: str) -> None:
    """What `ps` and `top` show."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
