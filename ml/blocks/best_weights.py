"""The weights of a phase's best epoch, so that the next phase can begin from them.

Best is what answers most held-out images with their given labels: no clean label is seen. Where nothing is held out,
the last epoch is the best. It knows no loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ml.method import TrainContext


class BestWeights(nn.Module):
    """A copy of one network's state, as buffers: a checkpoint holds it."""

    best: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.names = {name: name.replace(".", "/") for name in network.state_dict()}  # a buffer's name has no dot
        for name, value in network.state_dict().items():
            self.register_buffer(self.names[name], value.detach().clone())
        self.register_buffer("best", torch.full((), -1.0, dtype=torch.float64))

    def follow(self, lab: TrainContext, network: nn.Module, since: int) -> None:
        """Copy the network if its last epoch was the best since epoch `since`, with which the phase began.

        To be called when each epoch of the phase begins, and before the next phase does: an epoch is measured at its
        end.
        """
        if lab.epoch == since:
            self.best.fill_(-1.0)
            return
        accuracies = lab.noisy_accuracies()
        accuracy = accuracies[-1] if accuracies else 0.0
        if accuracy >= float(self.best):
            self.best.fill_(accuracy)
            for name, value in network.state_dict().items():
                self._kept(name).copy_(value)

    def restore(self, network: nn.Module) -> None:
        """Give the network the kept weights, in place: its optimizers still own them."""
        network.load_state_dict({name: self._kept(name) for name in self.names})

    def _kept(self, name: str) -> Tensor:
        return self.get_buffer(self.names[name])
