"""Works through the runs of a study, here or in processes of their own; what fails is told and left for the next call.

A process takes one run at a time. It ends when the study that started it is gone, so that a killed study leaves
nobody behind; and a study survives the death of a process.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

from ml import errors
from ml.method import ENSEMBLE
from ml.study import results
from ml.study.results import Task
from ml.study.run import Place, perform
from ml.training.events import EpochReport

log = logging.getLogger(__name__)

Say = Callable[[Task, str], None]  # what a run has to say: an epoch, its end, why it failed


def work(tasks: Sequence[Task], place: Place, *, jobs: int, nice: int, epoch: Say, done: Say) -> list[tuple[Task, str]]:
    """Do every task; returns those that failed, and why. One job at a time is done in this process."""
    if jobs == 1 and nice == 0:
        failed = [(task, _here(task, place, epoch, done)) for task in tasks]
        return [(task, fault) for task, fault in failed if fault]
    crew = _Crew(tasks, place, nice, epoch, done)
    try:
        for _ in range(min(jobs, len(tasks))):
            crew.hire()
        while crew.members:
            crew.listen()
    finally:
        crew.dismiss()
    return crew.failed


def _here(task: Task, place: Place, epoch: Say, done: Say) -> str:
    fault = _attempt(task, place, lambda text: epoch(task, text))
    if not fault:
        done(task, "")
    return fault


def _attempt(task: Task, place: Place, said: Callable[[str], None]) -> str:
    """Why it failed; empty where the result is written."""

    def report(event: EpochReport) -> None:
        answer = event.test.get(ENSEMBLE)
        said(f"epoch {event.epoch + 1}/{event.epochs}" + (f" test {answer.accuracy:.4f}" if answer else ""))

    results.code()  # as it is now that it runs, not as it will be when the run has ended
    try:
        results.write(task, perform(task.run, task.data, place, report))
    except errors.Failure as failure:
        return str(failure)
    except Exception as error:  # the outermost loop: one run must not end the others
        log.exception("%s", task.target.stem)
        return f"{type(error).__name__}: {error}"
    return ""


class _Message(NamedTuple):
    kind: str  # epoch, done or failed
    text: str


class _Member(NamedTuple):
    process: SpawnProcess
    task: Task


class _Crew:
    """Processes and the tasks that nobody has taken yet."""

    def __init__(self, tasks: Sequence[Task], place: Place, nice: int, epoch: Say, done: Say) -> None:
        self.waiting = list(tasks)
        self.place, self.nice, self.epoch, self.done = place, nice, epoch, done
        self.members: dict[Connection, _Member] = {}
        self.failed: list[tuple[Task, str]] = []

    def hire(self) -> None:
        """One more process, with the next task."""
        context = multiprocessing.get_context("spawn")  # forks of a process with torch's threads may hang
        ours, theirs = context.Pipe()
        process = context.Process(target=_member, args=(theirs, self.place, self.nice), daemon=True)
        process.start()
        theirs.close()
        self._give(ours, process)

    def listen(self) -> None:
        """Hear what any process has to say, and give it more to do."""
        for ready in wait(list(self.members)):
            assert isinstance(ready, Connection)
            process, task = self.members[ready]
            try:
                kind, text = ready.recv()
            except (EOFError, ConnectionError):
                self._bury(ready)
                continue
            if kind == "epoch":
                self.epoch(task, text)
                continue
            if kind == "done":
                self.done(task, text)
            else:
                self.failed.append((task, text))
            del self.members[ready]
            self._give(ready, process)

    def dismiss(self) -> None:
        """End whoever is still at work."""
        for connection, member in self.members.items():
            connection.close()
            member.process.terminate()
            member.process.join()
        self.members.clear()

    def _give(self, connection: Connection, process: SpawnProcess) -> None:
        if not self.waiting:
            connection.close()  # which ends it
            process.join()
            return
        task = self.waiting.pop(0)
        self.members[connection] = _Member(process, task)
        try:
            connection.send(task)
        except ConnectionError:
            self._bury(connection)

    def _bury(self, connection: Connection) -> None:
        """A process that ended in the middle: its task has failed, and another process takes its place."""
        process, task = self.members.pop(connection)
        connection.close()
        process.join()
        self.failed.append((task, f"its process ended with {process.exitcode}"))
        if self.waiting:
            self.hire()


def _member(connection: Connection, place: Place, nice: int) -> None:
    """What a process of the crew does, until nobody has anything more for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study hears it and ends us
    os.nice(nice)
    study = multiprocessing.parent_process()

    def said(text: str) -> None:
        if study is not None and not study.is_alive():
            sys.exit(1)
        connection.send(_Message("epoch", text))

    while True:
        try:
            task = connection.recv()
            fault = _attempt(task, place, said)
            connection.send(_Message("failed" if fault else "done", fault))
        except (EOFError, ConnectionError):
            return
