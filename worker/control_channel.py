"""The connection between a child and its supervisor: one socket, and the kernel's parent-death signal.

    supervisor -> child   b"d" drain: write a checkpoint, then stop · b"c" cancel: stop
                          end of stream: kill the own process group
    child -> supervisor   b"." beat: the work advances

Neither end knows what work the child does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
from typing import Literal

StopCommand = Literal["drain", "cancel"]

BEAT_S = 0.5  # a child reports that it advances at most this often
PR_SET_PDEATHSIG = 1
_COMMANDS: dict[bytes, StopCommand] = {b"d": "drain", b"c": "cancel"}

# Exit statuses of a child; any other is a crash. Whether the work is done stands in its row.
FINISHED, FENCED_OFF, DEVICE_FAILED, OUT_OF_MEMORY, STORAGE_UNAVAILABLE = 0, 70, 71, 72, 73
DRAINED, STOPPED, DATABASE_UNAVAILABLE = 75, 76, 69


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when the thread that forked it ends (Linux only; elsewhere a no-op).

    Args:
        number: The signal; 0 withdraws an earlier request.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


class ControlChannel:
    """The child's end of the socket.

    One process listens: the child itself, or the one it forks to do the work. Until then the child has one thread.

    Args:
        connection: The child's end of a stream socket pair.

    Attributes:
        command: The supervisor's latest command, to be checked between steps; None while the work should go on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.command: StopCommand | None = None
        self._connection = connection
        self._last_beat = 0.0

    def listen(self) -> None:
        """Receive commands from now on, in a thread; kill this process's group when the supervisor has ended."""
        threading.Thread(target=self._listen, name="control-channel", daemon=True).start()

    def beat(self) -> None:
        """Report that the work advances; a supervisor that receives no beat for `stall_s` kills the child."""
        now = time.monotonic()
        if now - self._last_beat >= BEAT_S:
            self._last_beat = now
            with contextlib.suppress(OSError):  # a supervisor that does not read, or has ended, does not stop the work
                self._connection.send(b".", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv(1)
            except OSError:
                message = b""
            if not message:
                os.killpg(0, signal.SIGKILL)  # the supervisor has ended, and its lease will pass to another
            self.command = _COMMANDS.get(message, self.command)
