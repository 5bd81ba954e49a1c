"""One attempt at one job, in a child process: from the claim to the exit status.

Everything that takes long to import is imported here or by `preload`, so that a child of a fork server that did both
imports nothing more.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import uuid

from pydantic import ValidationError

from app import logs
from app.db.session import Engine, connect, transaction
from app.errors import DatabaseUnavailable, StorageUnavailable
from app.jobs import service
from app.settings import Settings, current
from app.shared_storage import open_storage
from app.storage import LOG_FILE
from ml import errors, methods, networks
from ml.reports import plots
from worker import control_channel, host_devices
from worker.children import failures, ranks, score, train
from worker.children.job_context import JobContext, choose_devices
from worker.children.job_reporter import FencedOff, Interrupted, JobReporter
from worker.control_channel import ControlChannel

log = logging.getLogger(__name__)

# What ends only this attempt; a full disk is an OSError.
OF_THE_ATTEMPT = (Interrupted, FencedOff, DatabaseUnavailable, StorageUnavailable, *failures.RETRIED)


def preload() -> None:
    """Import what an attempt would import later: methods, networks, plots, the launcher of ranks, `torch._dynamo`."""
    if current().object_store:
        importlib.import_module("s3fs")
    plots.import_matplotlib()
    importlib.import_module("torch._dynamo")
    importlib.import_module("torch.distributed.launcher.api")
    for name in methods.names():
        methods.load(name)
    for module in pkgutil.iter_modules(networks.__path__, f"{networks.__name__}."):
        importlib.import_module(module.name)


def main(job_id: uuid.UUID, fence: int, request_id: str | None, channel: ControlChannel) -> int:
    """Run a child of the supervisor.

    Args:
        job_id: The job, already claimed.
        fence: Number of the claim.
        request_id: Id of the HTTP request that submitted the job, for the log.
        channel: The connection to the supervisor.

    Returns:
        The exit status, one of `worker.control_channel`.
    """
    settings = current()
    logs.configure(settings.log_level, process="child")
    with logs.bound(request_id=request_id, job_id=str(job_id), fence=str(fence)):
        files = open_storage(settings)
        folder = files.attempt(job_id, fence)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        logs.add_file(folder / LOG_FILE, process="child")
        log.info("child runs")
        engine = connect(settings, "child")
        reporter = JobReporter(settings, engine, job_id, fence, channel)
        try:
            with transaction(engine, read_only=True) as session:
                job = service.get(session, job_id)
            _attempt(JobContext(job, fence, files), settings, engine, reporter, channel)
        except Interrupted as stop:
            log.info("stopped: %s", stop.command)
            return control_channel.DRAINED if stop.command == "drain" else control_channel.STOPPED
        except StorageUnavailable as error:
            log.warning("giving up: %s", error.detail)
            return control_channel.STORAGE_UNAVAILABLE
        except failures.HostFailed as error:
            log.error("giving up on this host: %s", error)  # noqa: TRY400 - the trace is in the log already
            return error.status
        except FencedOff:
            log.warning("another attempt has taken over")
            return control_channel.FENCED_OFF
        except DatabaseUnavailable:
            log.warning("giving up: the database stays unavailable")
            return control_channel.DATABASE_UNAVAILABLE
        finally:
            engine.dispose()
    return control_channel.FINISHED


def _attempt(
    ctx: JobContext, settings: Settings, engine: Engine, reporter: JobReporter, channel: ControlChannel
) -> None:
    """Run the job to its end: it succeeds, or fails with an error. Raises what ends only this attempt."""
    offered = host_devices.names(settings)
    devices = choose_devices(offered, ctx.job)
    try:
        if len(devices) > 1:
            engine.dispose()  # a connection belongs to one process, and the ranks are forked from this one
            ranks.run(ctx, settings, devices, reporter, channel)
        else:
            channel.listen()
            {"train": train.run, "predict": score.run}[ctx.job.type](ctx, settings, devices, reporter)
    except ValidationError as invalid:
        log.warning("the job's spec is not valid here: %s", invalid)
        detail = f"This version of the service cannot run the job's settings: {invalid.errors()[0]['msg']}."
        error = failures.error_document("invalid_spec", detail, hint="Submit the job again with POST /jobs.")
    except errors.Failure as failure:
        log.warning("failed: %s", failure, exc_info=failure.__cause__)
        may_retry = ctx.job.attempts_without_progress + 1 < settings.max_attempts_without_progress
        status = failures.host_status(failure, offers_device=devices[0] in offered, may_retry=may_retry)
        if status is not None:
            reporter.log("warning", f"This attempt ended because of its host: {failure.detail}.")
            reporter.sync()
            raise failures.HostFailed(failure.detail, status) from failure
        error = failures.describe_failure(failure)
    except OF_THE_ATTEMPT:
        raise
    except Exception:
        log.exception("unexpected error")
        error = failures.error_document("internal_error", "An unexpected error ended the job.")
    else:
        return
    reporter.fail(error)
