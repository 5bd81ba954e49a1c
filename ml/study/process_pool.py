"""Runs the tasks of a study, in this process or in a pool of processes.

A process of the pool takes one task at a time. It ends when the study that started it is gone, so a killed study leaves
no process behind, and a study survives the death of a process. A failed task is reported and left to the next call.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection as PipeConnection
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

from ml import errors
from ml.method import ENSEMBLE
from ml.study import results
from ml.study.results import Task
from ml.study.run import RunDevice, run_one
from ml.training.events import EpochReport

log = logging.getLogger(__name__)

Report = Callable[[Task, str], None]  # called with a task and a line of text about it


def run_tasks(
    tasks: Sequence[Task], device: RunDevice, *, jobs: int, nice: int, on_epoch: Report, on_done: Report
) -> list[tuple[Task, str]]:
    """Run every task and write its result.

    Args:
        tasks: In the order in which they begin.
        device: Where they compute.
        jobs: Tasks at a time, each in its own process. A single one with `nice` 0 runs in this process.
        nice: Niceness that is added to the processes, 0 to 19.
        on_epoch: Called after every epoch with its number and test accuracy.
        on_done: Called with an empty text when a result is written.

    Returns:
        The tasks that failed, and why.
    """
    if jobs == 1 and nice == 0:
        errors_by_task = [(task, _run_here(task, device, on_epoch, on_done)) for task in tasks]
        return [(task, error) for task, error in errors_by_task if error]
    pool = _ProcessPool(tasks, device, nice, on_epoch, on_done)
    try:
        for _ in range(min(jobs, len(tasks))):
            pool.spawn()
        while pool.processes:
            pool.receive()
    finally:
        pool.shutdown()
    return pool.failed


def _run_here(task: Task, device: RunDevice, on_epoch: Report, on_done: Report) -> str:
    error = _run_task(task, device, lambda text: on_epoch(task, text))
    if not error:
        on_done(task, "")
    return error


def _run_task(task: Task, device: RunDevice, on_epoch: Callable[[str], None]) -> str:
    """Why it failed; empty if the result is written."""

    def describe(report: EpochReport) -> None:
        score = report.test.get(ENSEMBLE)
        on_epoch(f"epoch {report.epoch}/{report.epochs}" + (f" test {score.accuracy:.4f}" if score else ""))

    results.code_version()  # cached now: the code that a result names is that with which its run began
    try:
        results.write(task, run_one(task.run, task.data, device, describe))
    except errors.Failure as failure:
        return str(failure)
    except Exception as error:  # the outermost loop: one run must not end the others
        log.exception("%s", task.target.stem)
        return f"{type(error).__name__}: {error}"
    return ""


class _Message(NamedTuple):
    """What a process sends to the study."""

    kind: str  # epoch, done or failed
    text: str


class _Process(NamedTuple):
    process: SpawnProcess
    task: Task


class _ProcessPool:
    """Running processes, and the tasks that no process has begun."""

    def __init__(self, tasks: Sequence[Task], device: RunDevice, nice: int, on_epoch: Report, on_done: Report) -> None:
        self.waiting = list(tasks)
        self.processes: dict[PipeConnection, _Process] = {}
        self.failed: list[tuple[Task, str]] = []
        self._device, self._nice, self._on_epoch, self._on_done = device, nice, on_epoch, on_done

    def spawn(self) -> None:
        """Start one more process, with the next task."""
        context = multiprocessing.get_context("spawn")  # forks of a process with torch's threads may hang
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._device, self._nice), daemon=True)
        process.start()
        theirs.close()
        self._assign(ours, process)

    def receive(self) -> None:
        """Wait for messages of any process; give a process whose task has ended the next one."""
        for ready in wait(list(self.processes)):
            assert isinstance(ready, PipeConnection)
            process, task = self.processes[ready]
            try:
                kind, text = ready.recv()
            except (EOFError, ConnectionError):
                self._reap(ready)
                continue
            if kind == "epoch":
                self._on_epoch(task, text)
                continue
            if kind == "done":
                self._on_done(task, text)
            else:
                self.failed.append((task, text))
            del self.processes[ready]
            self._assign(ready, process)

    def shutdown(self) -> None:
        """Terminate the processes that still run."""
        for connection, running in self.processes.items():
            connection.close()
            running.process.terminate()
            running.process.join()
        self.processes.clear()

    def _assign(self, connection: PipeConnection, process: SpawnProcess) -> None:
        """Send the next task to a process; without one the process ends, because its connection closes."""
        if not self.waiting:
            connection.close()
            process.join()
            return
        task = self.waiting.pop(0)
        self.processes[connection] = _Process(process, task)
        try:
            connection.send(task)
        except ConnectionError:
            self._reap(connection)

    def _reap(self, connection: PipeConnection) -> None:
        """A process died: its task has failed, and a new process takes its place."""
        process, task = self.processes.pop(connection)
        connection.close()
        process.join()
        self.failed.append((task, f"its process ended with {process.exitcode}"))
        if self.waiting:
            self.spawn()


def _serve(connection: PipeConnection, device: RunDevice, nice: int) -> None:
    """Main function of a process: run tasks until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study receives it and terminates its processes
    os.nice(nice)
    study = multiprocessing.parent_process()

    def send_epoch(text: str) -> None:
        if study is not None and not study.is_alive():
            sys.exit(1)
        connection.send(_Message("epoch", text))

    while True:
        try:
            task = connection.recv()
            error = _run_task(task, device, send_epoch)
            connection.send(_Message("failed" if error else "done", error))
        except (EOFError, ConnectionError):
            return
