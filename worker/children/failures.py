"""The error of a job, as its user reads it, from an exception of `ml`: code, title, detail, and a hint what to do."""

from __future__ import annotations

import errno

from ml import errors

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
# What says nothing of the job: on another host, or on this one after a repair, it may succeed.
OF_THE_HOST = {"device_unavailable", "device_unsupported"}
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class HostFailed(Exception):
    """The attempt failed because of this host's device, and the job goes on elsewhere or later."""


def is_of_the_host(failure: errors.Failure, *, offers_device: bool) -> bool:
    """Whether an attempt failed because of the host.

    Args:
        failure: What ended the attempt.
        offers_device: Whether it used a device that the host offers, rather than one that only the job names.
    """
    return failure.code in OF_THE_HOST or (failure.code == "no_device" and offers_device)


def describe_failure(failure: errors.Failure) -> dict[str, str]:
    """The error of a job that ended with this failure."""
    code = "diverged" if isinstance(failure, errors.TrainingDiverged) else failure.code
    return error_document(code, _sentence(failure.detail), hint=failure.hint)


def error_document(code: str, detail: str, *, hint: str | None = None) -> dict[str, str]:
    """The error of a job.

    Args:
        code: One of `TITLES`, or of a failure of its own.
        detail: One or more sentences.
        hint: What the user can do; without one, that of `HINTS`.
    """
    hint = _sentence(hint) if hint else HINTS.get(code, "Change the request, and submit it again.")
    return {"code": code, "title": TITLES.get(code, "The job failed"), "detail": detail, "hint": hint}


def is_disk_full(error: BaseException) -> bool:
    """Whether writing failed because the disk is full; safetensors has the error number only in its message."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    return type(error).__name__ == "SafetensorError" and any(f"os error {number}" in str(error) for number in NO_SPACE)


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
