"""The weights of a phase's best epoch, so that the next phase can start from them.

The best epoch is the one with the highest noisy validation accuracy: predictions are compared with given labels, and no
clean label is used. Without validation images the last epoch is the best.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ml.method import TrainContext


class BestWeights(nn.Module):
    """A copy of one network's state as buffers, so that a checkpoint holds it."""

    best: Tensor  # float64 scalar: the accuracy of the copied epoch

    def __init__(self, network: nn.Module) -> None:
        """Copy the state of `network`."""
        super().__init__()
        self.names = {name: name.replace(".", "/") for name in network.state_dict()}  # a buffer's name has no dot
        for name, value in network.state_dict().items():
            self.register_buffer(self.names[name], value.detach().clone())
        self.register_buffer("best", torch.full((), -1.0, dtype=torch.float64))

    def update(self, context: TrainContext, network: nn.Module, first_epoch: int) -> None:
        """Copy `network` if the epoch that has just ended was the phase's best so far; of equals the later one counts.

        Call it when each epoch of the phase begins and when the next phase begins, as an epoch is measured at its end.

        Args:
            context: tells the epoch that begins and the accuracies of those before.
            network: as it was at the end of the last epoch.
            first_epoch: the epoch with which the phase began; accuracies before it do not count.
        """
        if context.epoch == first_epoch:
            self.best.fill_(-1.0)
            return
        accuracies = context.noisy_accuracies()
        accuracy = accuracies[-1] if accuracies else 0.0
        if accuracy >= float(self.best):
            self.best.fill_(accuracy)
            for name, value in network.state_dict().items():
                self._copy_of(name).copy_(value)

    def restore(self, network: nn.Module) -> None:
        """Load the copied state into `network` in place, so that optimisers still own its parameters."""
        network.load_state_dict({name: self._copy_of(name) for name in self.names})

    def _copy_of(self, name: str) -> Tensor:
        return self.get_buffer(self.names[name])
