"""What can go wrong in `ml`, each a type with a stable code and a sentence the user can act on.

This module knows no HTTP status and no job: `worker` translates.

    Failure
    +-- TrainingDiverged     the loss became NaN or infinite
    +-- OutOfMemory          a training or a prediction does not fit into memory
    +-- DeviceUnavailable    a GPU that cannot be used, or stopped working
    +-- DeviceUnsupported    a GPU that this build of torch has no kernels for
    +-- RankDivergence       the processes of one training no longer agree
    +-- UnknownName          no such method, network or class
    +-- ContradictorySpec    settings of a training that exclude each other
    +-- UnusableData         a data set that cannot be trained on
    +-- UndecodableImage     bytes that are no acceptable image
    +-- CheckpointInvalid    a checkpoint that is damaged or belongs to another training
    +-- ModelArchiveCorrupt  published weights that do not verify
    +-- MissingWeights       pretrained weights that the operator has not provided
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from ml.formats.errors import DatasetFormatError


class Failure(Exception):
    """A failure with a `code` in snake_case, a `detail` that names the cause, and a `hint` that names a way out."""

    def __init__(self, detail: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.code = code or re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def __str__(self) -> str:
        return f"{self.detail} ({self.hint})" if self.hint else self.detail


def one_line(error: Exception) -> str:
    """The message of any error in one line: the faulty settings, or the file that cannot be read, and why."""
    if isinstance(error, ValidationError):
        faults = [(".".join(str(part) for part in fault["loc"]), fault["msg"]) for fault in error.errors()]
        return "; ".join(f"{place}: {message}" if place else message for place, message in faults)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


class TrainingDiverged(Failure):
    """The loss became NaN or infinite."""

    def __init__(self, epoch: int, phase: str) -> None:
        super().__init__(
            f"the training loss stopped being finite in epoch {epoch} (phase {phase!r})",
            hint="lower learning_rate, or set precision to f32",
        )
        self.epoch = epoch  # from 1


class OutOfMemory(Failure):
    """A training or a prediction does not fit into memory.

    Attributes:
        fitting_batch_size: A batch size that should fit; None if there is none.
        by_neighbour: Whether other processes hold so much of the GPU that without them it might have fitted.
    """

    def __init__(self, detail: str, fitting_batch_size: int | None, *, by_neighbour: bool = False) -> None:
        self.fitting_batch_size = rounded_batch(fitting_batch_size)
        self.by_neighbour = by_neighbour
        fits = f"batch_size {self.fitting_batch_size} should fit"
        super().__init__(
            detail, hint="use a smaller network or image_size" if self.fitting_batch_size is None else fits
        )


def rounded_batch(size: int | None) -> int | None:
    """The largest multiple of 8, or 4 or 2, up to `size`; None below 2."""
    if size is None or size < 2:
        return None
    return size // 8 * 8 if size >= 8 else size // 4 * 4 or 2


class DeviceUnavailable(Failure):
    """A GPU cannot be used, or stopped working: the driver is too old, the device is lost, it reports an error."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, hint="repair the GPU or its driver, or set the device to cpu")


class DeviceUnsupported(Failure):
    """This build of torch has no kernels for the GPU."""

    def __init__(self, name: str, capability: tuple[int, int], supported: Sequence[str]) -> None:
        """Name the GPU.

        Args:
            name: Of the GPU.
            capability: Its compute capability, such as (6, 1).
            supported: The architectures that torch has kernels for, such as `sm_75`.
        """
        super().__init__(
            f"{name} has compute capability {capability[0]}.{capability[1]}, and this build of torch has kernels for "
            f"{', '.join(supported)}",
            hint="use a newer GPU or another build of torch, or set the device to cpu",
        )


class RankDivergence(Failure):
    """The ranks of one training hold weights that differ by more than rounding."""

    def __init__(self, drift: float) -> None:
        super().__init__(
            f"the processes of this training hold weights that differ by {drift:.1e} of their size",
            hint="train on one device, or on devices of one kind",
        )


class UnknownName(Failure):
    """No such method, network or class."""


class ContradictorySpec(Failure):
    """Settings of a training that exclude each other."""


class UnusableData(Failure):
    """A data set that cannot be trained on."""

    @classmethod
    def from_format_error(cls, error: DatasetFormatError, path: Path) -> Self:
        """The failure for an error of `ml.formats`; where columns are not clear, the hint names the options.

        Args:
            error: The error.
            path: The folder or archive that it is about.
        """
        options = "--path-column, --label-column and --clean-column name the columns to use"
        return cls(f"{path}: {error.detail}", hint=options if error.columns else None, code=error.code)


class UndecodableImage(Failure):
    """Bytes that are no acceptable image; `code` says why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail, code=code)


class CheckpointInvalid(Failure):
    """A checkpoint that is damaged or belongs to another training."""


class ModelArchiveCorrupt(Failure):
    """Published weights that do not verify."""


class MissingWeights(Failure):
    """Pretrained weights that the operator has not provided."""
