"""`python -m ml study`: run the grid of a study file, as far as its results are not there yet, and make its table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml import commands, errors

if TYPE_CHECKING:
    from ml.study.plan import Plan
    from ml.study.results import Task


def add(parsers: commands.Commands[argparse.ArgumentParser]) -> None:
    """The command's options."""
    study = parsers.add_parser("study", help="run a grid of methods, noises and seeds, and make its table")
    study.add_argument("file", help="a study file, or the name of one that comes along")
    study.add_argument("--out", type=Path, help="folder of results and tables; default studies/<name of the file>")
    study.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help="where a data set lies")
    study.add_argument("--jobs", type=int, default=1, help="trainings at a time, each in its own process")
    study.add_argument("--only", action="append", default=[], metavar="KIND=GLOB", help="row=..., cell=... or seed=...")
    study.add_argument("--table", action="store_true", help="only make the table of the results that are there")
    study.add_argument("--list", action="store_true", help="only say which trainings are done and which are not")
    study.add_argument("--nice", type=int, default=0, help="how far to stand back behind other processes, 0 to 19")
    study.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    study.add_argument("--device", help="instead of the specs': cpu, cuda, cuda:1")
    study.add_argument("--weights", type=Path, help="folder of pretrained weights")
    study.add_argument(
        "--cuda-graphs", action="store_true", help="repeat recorded steps on a GPU: less waiting for Python"
    )
    study.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit code 1 where something could not be done; what could be done is done."""
    from ml.study import plan, table

    file = plan.find(options.file)
    laid_out = plan.lay_out(plan.read(file), file.parent, options.only)
    out = options.out or Path("studies") / file.stem
    for fault in laid_out.faults:
        print(f"left out: {fault}", file=sys.stderr)
    given, missing = _given(options.data), 0
    if not options.table:
        tasks = _tasks(laid_out, out, given)
        todo = [task for task in tasks if not task.target.exists()]
        print(f"{len(tasks) - len(todo)} of {len(tasks)} trainings are done", file=sys.stderr)
        if options.list:
            for task in tasks:
                print("open" if task in todo else "done", _name(laid_out, task))
            return 0
        missing = _train(laid_out, todo, out, options)
    if not out.is_dir():
        raise errors.UnusableData(f"there are no results in {out}", code="no_results")
    print(table.write(laid_out, _found(laid_out, out, given, needed=not options.table), out))
    return 1 if missing or laid_out.faults else 0


def _train(laid_out: Plan, todo: list[Task], out: Path, options: argparse.Namespace) -> int:
    """Run what is not there yet; how many runs failed."""
    out.mkdir(parents=True, exist_ok=True)
    if not todo:
        return 0
    from ml.study import process_pool
    from ml.study.run import Place

    ended = 0

    def epoch(task: Task, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{_name(laid_out, task)}: {text}  ", end="", file=sys.stderr, flush=True)

    def done(task: Task, _: str) -> None:
        nonlocal ended
        ended += 1
        print(f"\r{ended}/{len(todo)} {_name(laid_out, task)}", file=sys.stderr, flush=True)

    place = Place(options.device, options.threads, options.weights, options.cuda_graphs)
    failed = process_pool.work(todo, place, jobs=max(1, options.jobs), nice=options.nice, epoch=epoch, done=done)
    for task, fault in failed:
        print(f"failed: {_name(laid_out, task)}: {fault}", file=sys.stderr)
    return len(failed)


def _tasks(laid_out: Plan, out: Path, given: Mapping[str, Path]) -> list[Task]:
    from ml.study import results, sources

    made = []
    for run in laid_out.runs():
        at = sources.location(run.data, run.source, laid_out.folder, given)
        made.append(results.task(run, at, sources.fingerprint(at, run.source.drawn), out))
    return made


def _found(laid_out: Plan, out: Path, given: Mapping[str, Path], *, needed: bool) -> list[dict[str, Any]]:
    """The results of the plan's runs and data. Unless `needed`, a folder may lie where nobody said; the photographs of
    scenes may not: what is drawn with them differs from cell to cell, so results alone do not say whether they are the
    same."""
    from ml.study import results, sources

    wanted: dict[str, str | None] = {}
    for run in laid_out.runs():
        try:
            at = sources.location(run.data, run.source, laid_out.folder, given)
        except errors.UnusableData:
            if needed or run.data in given or run.source.source == "scenes":
                raise
            wanted[run.key] = None
        else:
            wanted[run.key] = sources.fingerprint(at, run.source.drawn)
    kept, others = results.chosen(results.read(out), wanted)
    if others:
        print(f"left out: {others} results of other data", file=sys.stderr)
    return kept


def _given(texts: list[str]) -> dict[str, Path]:
    given = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not path:
            raise errors.UnusableData(f"--data {text}: not NAME=PATH", code="no_data")
        given[name] = Path(path)
    return given


def _name(laid_out: Plan, task: Task) -> str:
    entry = next(entry for entry in laid_out.entries if entry.run.key == task.run.key)
    return f"{entry.row.label}, {entry.cell.name}, seed {entry.seed}"
