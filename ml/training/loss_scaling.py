"""Loss scaling, which fp16 needs: its smallest numbers are larger than many gradients.

The loss is multiplied by a scale before the backward pass, and gradients are divided by it afterwards (torch's
GradScaler). Where a gradient overflows, its optimiser takes no step and the scale is halved; after 2,000 steps without
an overflow it is doubled. Nothing waits for the device, and all of its state is tensors, so that steps can be recorded
and a checkpoint can be written while the training goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

MIN_SCALE = 1e-4  # gradients that still overflow below it are no matter of precision


class LossScaler(torch.amp.GradScaler):
    """A GradScaler for the training of one process; off, it does nothing and has no state.

    Attributes:
        skipped: Steps of this epoch in which an optimiser took none, int64 scalar on the device.
    """

    _scale: Tensor | None = None
    _growth_tracker: Tensor | None = None

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        """`device` is the one that trains."""
        super().__init__(device.type, enabled=enabled)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        if enabled:  # not at the first step, which may be recorded
            self._lazy_init_scale_growth_tracker(device)

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """After the steps of all optimisers: move the scale, and count the step if one of them was skipped."""
        if self._scale is None:
            return
        before = self._scale.clone()
        super().update(new_scale)
        self.skipped += self._scale < before

    def has_collapsed(self) -> Tensor:
        """Whether the scale is below `MIN_SCALE`, a bool scalar on the device."""
        if self._scale is None:
            return torch.zeros_like(self.skipped, dtype=torch.bool)
        return self._scale < MIN_SCALE

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name, not copied; empty where it is off."""
        if self._scale is None or self._growth_tracker is None:
            return {}
        return {"scale": self._scale, "growth_tracker": self._growth_tracker, "skipped": self.skipped}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `tensors` of the same training; from the initial scale where the checkpoint has none."""
        if tensors:
            for name, tensor in self.tensors().items():
                tensor.copy_(tensors[name])

    @contextlib.contextmanager
    def preserved(self) -> Iterator[None]:
        """Restore its state afterwards."""
        before = {name: tensor.clone() for name, tensor in self.tensors().items()}
        try:
            yield
        finally:
            self.restore(before)
