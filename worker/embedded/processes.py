"""Child processes of the launcher: they die with it, are restarted when they die, and are ended in order."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.settings import without_secrets
from worker import control_channel

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
STABLE_S = 60.0  # a process that ran this long is restarted after the first pause
LOG_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Program:
    """A program to run.

    Args:
        name: Name of its log file, and in messages.
        command: Program and arguments.
        grace_s: How long it may take to end after SIGTERM.
        secrets: Settings with secrets that it needs; it does not see the others.
    """

    name: str
    command: Sequence[str]
    grace_s: float
    secrets: Sequence[str] = ()


class Process:
    """One program that is kept running.

    Args:
        program: What is run.
        environment: Its environment variables, with more secrets than it gets.
        logs: Folder of its log file.
    """

    def __init__(self, program: Program, environment: Mapping[str, str], logs: Path) -> None:
        self.program = program
        self._environment = without_secrets(environment, *program.secrets)
        self._log = logs / f"{program.name}.log"
        self._running: subprocess.Popen[bytes] | None = None
        self._started = self._restart_at = float("-inf")
        self._pause = FIRST_PAUSE_S

    def start(self) -> None:
        with self._log.open("ab") as output:
            self._running = subprocess.Popen(
                self.program.command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal reaches the launcher alone
                preexec_fn=_prepare_child,  # noqa: PLW1509 - the launcher has one thread
            )
        self._started = time.monotonic()

    def restart_if_dead(self) -> bool:
        """Start it again when it has died, after a pause that doubles each time; whether it runs."""
        if self._running is not None:
            status = self._running.poll()
            if status is None:
                return True
            log.warning("%s ended with %d; see %s", self.program.name, status, self._log)
            self._running = None
            lived = time.monotonic() - self._started
            self._pause = FIRST_PAUSE_S if lived > STABLE_S else min(LONGEST_PAUSE_S, self._pause * 2)
            self._restart_at = time.monotonic() + self._pause
        if time.monotonic() >= self._restart_at:
            self.start()
            return True
        return False

    def limit_log(self) -> None:
        """Move a log that has grown large aside while the program goes on writing it; the one before that is lost."""
        with contextlib.suppress(FileNotFoundError):  # somebody has deleted it
            if self._log.stat().st_size <= LOG_BYTES:
                return
            # The program keeps its file open, so what it holds is copied. It appends: it goes on at the new end. What
            # it writes between the copy and the cut is lost.
            with contextlib.suppress(OSError):  # of a full disk, which the cut helps
                shutil.copyfile(self._log, self._log.with_suffix(".log.1"))
            os.truncate(self._log, 0)

    def terminate(self) -> None:
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(signal.SIGTERM)

    def end(self, deadline: float) -> None:
        """Wait until it has ended; kill it at `deadline` (`time.monotonic()`)."""
        if self._running is None:
            return
        try:
            self._running.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("%s is killed: it did not end in time", self.program.name)
            self._running.kill()
            self._running.wait()
        self._running = None


def end(processes: Sequence[Process]) -> None:
    """Terminate these together, and wait for each within its grace."""
    now = time.monotonic()
    for process in processes:
        process.terminate()
    for process in processes:
        process.end(now + process.program.grace_s)


def _prepare_child() -> None:
    control_channel.die_with_parent()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the launcher waits for signals with them blocked
