"""Child processes of the launcher: started with a promise to die with it, restarted when they die, ended in order."""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker import control_channel

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
STEADY_S = 60.0  # a process that lived this long is restarted at once
LOG_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Program:
    """What is run, and how long it may take to end itself once told to."""

    name: str
    command: Sequence[str]
    grace_s: float


class Process:
    """One program that is kept running."""

    def __init__(self, program: Program, environment: Mapping[str, str], logs: Path) -> None:
        self.program = program
        self._environment = dict(environment)
        self._log = logs / f"{program.name}.log"
        self._running: subprocess.Popen[bytes] | None = None
        self._started = self._again = float("-inf")
        self._pause = FIRST_PAUSE_S

    def start(self) -> None:
        _rotate(self._log)
        with self._log.open("ab") as output:
            self._running = subprocess.Popen(
                self.program.command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is the launcher's to interpret
                preexec_fn=_belong,  # noqa: PLW1509 - the launcher has one thread
            )
        self._started = time.monotonic()

    def keep(self) -> bool:
        """Start it again when it has died, later each time; whether it runs."""
        if self._running is not None:
            status = self._running.poll()
            if status is None:
                return True
            log.warning("%s ended with %d; see %s", self.program.name, status, self._log)
            self._running = None
            lived = time.monotonic() - self._started
            self._pause = FIRST_PAUSE_S if lived > STEADY_S else min(LONGEST_PAUSE_S, self._pause * 2)
            self._again = time.monotonic() + self._pause
        if time.monotonic() >= self._again:
            self.start()
            return True
        return False

    def ask_to_end(self) -> None:
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(signal.SIGTERM)

    def end(self, deadline: float) -> None:
        """Wait until it has ended, and kill it when the time is over."""
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
    """End these together, each within its grace."""
    now = time.monotonic()
    for process in processes:
        process.ask_to_end()
    for process in processes:
        process.end(now + process.program.grace_s)


def _belong() -> None:
    control_channel.die_with_parent()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the launcher waits for signals with them blocked


def _rotate(path: Path) -> None:
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
