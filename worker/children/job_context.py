"""What identifies one attempt at a job: the job's row, the fence it works under, and where its files are."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.db.tables import Job
from app.errors import DatasetUnavailable
from app.object_store import Progress
from app.storage import Storage
from ml import errors
from ml.formats import dataset_index
from ml.formats.errors import UnreadableFile
from ml.formats.records import ImageRecord, Split


@dataclass(frozen=True)
class JobContext:
    """One attempt at one job.

    Args:
        job: The row, as it was when the attempt began.
        fence: Number of the claim; it also names the attempt's folder.
        files: The service's data folder.
    """

    job: Job
    fence: int
    files: Storage

    @property
    def folder(self) -> Path:
        """The only folder this attempt writes to."""
        return self.files.attempt(self.job.id, self.fence)

    @property
    def dataset_folder(self) -> Path:
        """The folder of the job's data set."""
        return self.fetch_dataset()

    def fetch_dataset(self, progress: Progress | None = None) -> Path:
        """The folder of the job's data set, on this host and in use from now on.

        Args:
            progress: Told how many bytes are there while they come from an object store; what it raises ends the wait.

        Raises:
            UnusableData: Its files are gone or damaged (code `dataset_corrupt`).
            StorageUnavailable: The object store cannot be reached.
        """
        assert self.job.dataset_id is not None, "a data set in use is not deleted"
        try:
            folder = self.files.fetch_dataset(
                self.job.dataset_id, self.job.label_version, with_images=True, hold=True, progress=progress
            )
            dataset_index.read_classes(folder, self.job.label_version)
        except (DatasetUnavailable, UnreadableFile) as error:
            detail = "the data set's files are missing or damaged"
            raise errors.UnusableData(detail, code="dataset_corrupt") from error
        return folder

    def fetch_model(self, model_id: uuid.UUID) -> Path:
        """The folder of a published model, on this host and in use from now on."""
        model = self.files.model(model_id)
        try:
            return self.files.fetch(model, hold=True)
        except FileNotFoundError:
            return model  # which is not there, as its reader will say

    def read_images(self, split: Split | None = None) -> list[ImageRecord]:
        """The images that the job uses, with the labels of its version; in the order of `ml.data.dataset.load`."""
        return dataset_index.read_included(self.dataset_folder, self.job.label_version, split)


def choose_devices(host_devices: Sequence[str], job: Job) -> tuple[str, ...]:
    """The devices that a job computes on, one for each of its processes.

    Args:
        host_devices: What this host offers, such as `("cuda:0", "cuda:1")`, `("cpu",)` or `("auto",)`.
        job: Its `gpus` is how many devices it takes; its spec's `device` is `auto`, `cpu` or `cuda`.
    """
    devices = tuple(host_devices[: job.gpus])
    requested = str(job.spec.get("device", "auto"))
    if requested == "auto" or devices[0].startswith(requested):
        return devices
    return (requested,) * len(devices)  # a GPU on a host that has none ends in no_device
