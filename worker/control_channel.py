"""What ties a child to its supervisor: one socket, and the kernel's promise that nobody outlives whom it belongs to.

    supervisor -> child   b"d" drain (checkpoint, then stop) · b"c" stop: cancelled or fenced off · end of stream: die
    child -> supervisor   b"." I advance

Neither end knows what the child does.
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

Command = Literal["drain", "cancel"]  # what a supervisor wants of its child

BEAT_S = 0.5  # a child says that it advances at most this often
PR_SET_PDEATHSIG = 1
_WORDS: dict[bytes, Command] = {b"d": "drain", b"c": "cancel"}

# How a child ends; anything else is a crash. Whatever it says, the row tells whether the work was settled.
SETTLED, FENCED_OFF, DRAINED, STOPPED, DATABASE_UNAVAILABLE = 0, 70, 75, 76, 69


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel for a signal when the thread that forked us ends; 0 is none (Linux; elsewhere sockets must do)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


class ControlChannel:
    """The child's end. `told` is what the supervisor wants, to be looked at between steps.

    One process listens: the child, or the one it has forked to do the work. Until then it has no second thread.
    """

    def __init__(self, line: socket.socket) -> None:
        self.told: Command | None = None
        self._line = line
        self._beaten = 0.0

    def listen(self) -> None:
        """Hear from now on what the supervisor says, and end when it is gone."""
        threading.Thread(target=self._listen, name="leash", daemon=True).start()

    def beat(self) -> None:
        """Say that the work advances; a supervisor that hears nothing for `stall_s` kills the child."""
        now = time.monotonic()
        if now - self._beaten >= BEAT_S:
            self._beaten = now
            with contextlib.suppress(OSError):  # a supervisor that does not listen, or is gone: not the work's concern
                self._line.send(b".", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _listen(self) -> None:
        while True:
            try:
                word = self._line.recv(1)
            except OSError:
                word = b""
            if not word:
                os.killpg(0, signal.SIGKILL)  # the supervisor is gone; its lease will pass to another
            self.told = _WORDS.get(word, self.told)
