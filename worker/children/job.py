"""One attempt at one job, from the claim to the exit status. Which attempt is made depends on the job's type.

Everything slow that an attempt needs is imported here, so that a zygote that has imported this module is warm.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import uuid
from collections.abc import Callable

from pydantic import ValidationError

from app import logs
from app.db.session import connect, transaction
from app.errors import DatabaseUnavailable
from app.jobs import attempt, service
from app.settings import current
from app.storage import Storage
from ml import errors, methods, networks
from ml.reports import plots
from worker import control_channel
from worker.children import failures, ranks, score, train
from worker.children.job_reporter import FencedOff, Interrupted, JobContext, JobReporter
from worker.control_channel import ControlChannel

log = logging.getLogger(__name__)


def warm() -> None:
    """Import what an attempt would import later: methods, networks, plots, a launcher, the compiler of optimizers."""
    current()
    plots.warm()
    importlib.import_module("torch._dynamo")
    importlib.import_module("torch.distributed.launcher.api")
    for name in methods.names():
        methods.load(name)
    for module in pkgutil.iter_modules(networks.__path__, f"{networks.__name__}."):
        importlib.import_module(module.name)


def main(job_id: uuid.UUID, fence: int, request_id: str | None, tie: ControlChannel) -> int:
    """What a child of the supervisor runs; its exit status, of those in `worker.control_channel`."""
    settings = current()
    logs.configure(settings.log_level, process="child")
    with logs.bound(request_id=request_id, job_id=str(job_id), fence=str(fence)):
        files = Storage(settings.data_dir)
        folder = files.attempt(job_id, fence)
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        logs.also_to(folder / "log.jsonl", process="child")
        log.info("child runs")
        engine = connect(settings)
        desk = JobReporter(settings, engine, job_id, fence, tie)
        try:
            with transaction(engine, read_only=True) as session:
                job = service.get(session, job_id)
            return _attempt(JobContext(settings, files, engine, desk, tie, job, fence))
        except Interrupted as stop:
            log.info("stopped: %s", stop.told)
            return control_channel.DRAINED if stop.told == "drain" else control_channel.STOPPED
        except FencedOff:
            log.warning("another attempt has taken over")
            return control_channel.FENCED_OFF
        except DatabaseUnavailable:
            log.warning("giving up: the database stays away")
            return control_channel.DATABASE_UNAVAILABLE
        finally:
            engine.dispose()


def _attempt(given: JobContext) -> int:
    run: Callable[[JobContext], None] = {"train": train.run, "predict": score.run}[given.job.type]
    if len(given.devices) > 1:
        run = ranks.run  # one of them will listen
    else:
        given.tie.listen()
    try:
        run(given)
    except ValidationError as invalid:
        log.warning("the job's spec is not valid here: %s", invalid)
        detail = f"This version of the service cannot run the job's settings: {invalid.errors()[0]['msg']}."
        error = failures.error("invalid_spec", detail, hint="Submit the job again with POST /jobs.")
    except errors.Failure as failure:
        log.warning("failed: %s", failure)
        error = failures.of(failure)
    except (Interrupted, FencedOff, DatabaseUnavailable, OSError, RuntimeError, MemoryError):
        raise  # of this attempt, not of the job: another may succeed
    except Exception:
        log.exception("a mistake of ours")
        error = failures.error("internal_error", "An unexpected error ended the job.")
    else:
        return control_channel.SETTLED
    given.desk.settle(lambda session: attempt.fail(session, given.job.id, given.fence, error))
    return control_channel.SETTLED
