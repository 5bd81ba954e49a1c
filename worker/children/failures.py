"""The error of a job, as its user reads it, from an exception of `ml`: code, title, detail, and a hint what to do."""

from __future__ import annotations

import errno

from app.errors import InsufficientStorage, sentence
from ml import errors
from worker import control_channel

TITLES = {
    "diverged": "The training diverged",
    "out_of_memory": "Not enough memory",
    "time_limit": "The time limit was reached",
    "disk_full": "The disk is full",
    "unusable_data": "The data set cannot be trained on",
    "dataset_corrupt": "The data set's files are damaged",
    "no_device": "The device does not exist",
    "model_archive_corrupt": "The model's files are damaged",
    "missing_weights": "No pretrained weights are installed",
    "invalid_spec": "The job's settings are not valid here",
    "internal_error": "Internal error",
}
HINTS = {
    "diverged": "Lower learning_rate, or set precision to f32.",
    "disk_full": "Delete data sets, jobs or models, or add disk; then retry: it goes on from the last checkpoint.",
    "dataset_corrupt": "Upload the data set again.",
    "internal_error": "Look at /jobs/{id}/logs, and report it with the request id.",
}
OF_THE_HOST = {"device_unavailable", "device_unsupported"}  # codes of failures that another host may not have
RETRIED = (InsufficientStorage, OSError, RuntimeError, MemoryError)  # errors that another attempt may not meet
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class HostFailed(Exception):
    """The attempt failed because of this host, and the job goes on elsewhere or later.

    Args:
        detail: Why.
        status: The exit status of the child, one of `worker.control_channel`.
    """

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(detail)
        self.status = status


def host_status(failure: errors.Failure, *, offers_device: bool, may_retry: bool) -> int | None:
    """The exit status of an attempt that failed because of its host; None where the job is to blame.

    Args:
        failure: What ended the attempt.
        offers_device: Whether it used a device that the host offers, rather than one that only the job names.
        may_retry: Whether the job has another attempt, should its GPU be too full again.
    """
    if failure.code in OF_THE_HOST or (failure.code == "no_device" and offers_device):
        return control_channel.DEVICE_FAILED
    if isinstance(failure, errors.OutOfMemory) and failure.by_neighbour and may_retry:
        return control_channel.OUT_OF_MEMORY
    return None


def describe_failure(failure: errors.Failure) -> dict[str, str]:
    """The error of a job that ended with this failure."""
    code = "diverged" if isinstance(failure, errors.TrainingDiverged) else failure.code
    return error_document(code, sentence(failure.detail), hint=failure.hint)


def error_document(code: str, detail: str, *, hint: str | None = None) -> dict[str, str]:
    """The error of a job.

    Args:
        code: One of `TITLES`, or of a failure of its own.
        detail: One or more sentences.
        hint: What the user can do; without one, that of `HINTS`.
    """
    hint = sentence(hint) if hint else HINTS.get(code, "Change the request, and submit it again.")
    return {"code": code, "title": TITLES.get(code, "The job failed"), "detail": detail, "hint": hint}


def is_disk_full(error: BaseException) -> bool:
    """Whether writing failed because the disk is full; safetensors has the error number only in its message."""
    if isinstance(error, InsufficientStorage):
        return True  # of the object store
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    return type(error).__name__ == "SafetensorError" and any(f"os error {number}" in str(error) for number in NO_SPACE)
