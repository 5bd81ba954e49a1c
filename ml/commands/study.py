"""`python -m ml study`: run the trainings of a study that have no result yet, and make its table."""

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


def add(parsers: commands.SubParsers[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    study = parsers.add_parser("study", help="run a grid of methods, noises and seeds, and make its table")
    study.add_argument("file", help="a study file, or the name of a study of this package")
    study.add_argument("--out", type=Path, help="folder of results and tables; default studies/<name of the file>")
    study.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help="where a data set is")
    study.add_argument("--jobs", type=int, default=1, help="trainings at a time, each in its own process")
    study.add_argument("--only", action="append", default=[], metavar="KIND=GLOB", help="row=..., cell=... or seed=...")
    study.add_argument("--table", action="store_true", help="only make the table of the existing results")
    study.add_argument("--list", action="store_true", help="only list the trainings and whether each is done")
    study.add_argument("--nice", type=int, default=0, help="niceness added to the processes, 0 to 19")
    study.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    study.add_argument("--device", help="instead of the specs': cpu, cuda, cuda:1")
    commands.add_weights_option(study)
    study.add_argument("--eager", action="store_true", help="on a GPU: record no steps, take them one by one")
    study.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run what has no result yet and write the table; exit code 1 where a row or a training failed."""
    from ml.study import plan, table

    file = plan.find(options.file)
    study_plan = plan.make_plan(plan.read(file), file.parent, options.only)
    out = options.out or Path("studies") / file.stem
    for fault in study_plan.faults:
        print(f"left out: {fault}", file=sys.stderr)
    paths, failed = _parse_data(options.data), 0
    if not options.table:
        tasks = _tasks(study_plan, out, paths)
        open_tasks = [task for task in tasks if not task.target.exists()]
        print(f"{len(tasks) - len(open_tasks)} of {len(tasks)} trainings are done", file=sys.stderr)
        if options.list:
            for task in tasks:
                print("open" if task in open_tasks else "done", _title(study_plan, task))
            return 0
        failed = _train(study_plan, open_tasks, out, options)
    if not out.is_dir():
        raise errors.UnusableData(f"there are no results in {out}", code="no_results")
    print(table.write(study_plan, _results(study_plan, out, paths, data_required=not options.table), out))
    return 1 if failed or study_plan.faults else 0


def _train(study_plan: Plan, tasks: list[Task], out: Path, options: argparse.Namespace) -> int:
    """Run the tasks; returns how many failed."""
    out.mkdir(parents=True, exist_ok=True)
    if not tasks:
        return 0
    from ml.study import process_pool
    from ml.study.run import RunDevice

    ended = 0

    def on_epoch(task: Task, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{_title(study_plan, task)}: {text}  ", end="", file=sys.stderr, flush=True)

    def on_done(task: Task, _: str) -> None:
        nonlocal ended
        ended += 1
        print(f"\r{ended}/{len(tasks)} {_title(study_plan, task)}", file=sys.stderr, flush=True)

    device = RunDevice(options.device, options.threads, options.weights, not options.eager, out)
    failed = process_pool.run_tasks(
        tasks, device, jobs=max(1, options.jobs), nice=options.nice, on_epoch=on_epoch, on_done=on_done
    )
    for task, error in failed:
        print(f"failed: {_title(study_plan, task)}: {error}", file=sys.stderr)
    return len(failed)


def _tasks(study_plan: Plan, out: Path, paths: Mapping[str, Path]) -> list[Task]:
    from ml.study import results, sources

    tasks = []
    for planned in study_plan.runs():
        data = sources.locate_data(planned.data, planned.source, study_plan.folder, paths)
        tasks.append(results.make_task(planned, data, sources.fingerprint(data, planned.source.draw_json), out))
    return tasks


def _results(study_plan: Plan, out: Path, paths: Mapping[str, Path], *, data_required: bool) -> list[dict[str, Any]]:
    """The results of the plan's runs and data.

    Unless `data_required`, the path of a folder may be unknown: then its results are taken if all are of one data set.
    Photographs of scenes are always required, because fingerprints of scenes differ from cell to cell.
    """
    from ml.study import results, sources

    fingerprints: dict[str, str | None] = {}
    for planned in study_plan.runs():
        try:
            data = sources.locate_data(planned.data, planned.source, study_plan.folder, paths)
        except errors.UnusableData:
            if data_required or planned.data in paths or planned.source.source == "scenes":
                raise
            fingerprints[planned.key] = None
        else:
            fingerprints[planned.key] = sources.fingerprint(data, planned.source.draw_json)
    selected, of_other_data = results.select(results.read(out), fingerprints)
    if of_other_data:
        print(f"left out: {of_other_data} results of other data", file=sys.stderr)
    return selected


def _parse_data(texts: list[str]) -> dict[str, Path]:
    """Paths by name, of `NAME=PATH`."""
    paths = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not path:
            raise errors.UnusableData(f"--data {text}: not NAME=PATH", code="no_data")
        paths[name] = Path(path)
    return paths


def _title(study_plan: Plan, task: Task) -> str:
    entry = next(entry for entry in study_plan.entries if entry.run.key == task.run.key)
    return f"{entry.row.label}, {entry.cell.name}, seed {entry.seed}"
