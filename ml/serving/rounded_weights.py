"""Weights in bf16 for predictions under autocast, which otherwise rounds them anew for every batch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import nn

from ml.networks.chain import Chain

ROUNDED = (nn.Conv2d, nn.Linear)  # and no subclasses, which may compute with their weights otherwise


class RoundedWeights:
    """The parameters of convolutions and linear layers in a method's networks, rounded once.

    What a method computes beside its networks may be exact, as where DeNLL locates objects.

    Args:
        method: Keeps its own parameters; they must not change from now on.
    """

    def __init__(self, method: nn.Module) -> None:
        networks = [network for network in method.modules() if isinstance(network, Chain)]
        self._exact = [
            (module, name, parameter)
            for network in networks
            for module in network.modules()
            if type(module) in ROUNDED
            for name, parameter in module.named_parameters(recurse=False)
        ]
        self._rounded = [
            nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False) for *_, parameter in self._exact
        ]
        self._lock = threading.Lock()  # guards the number of threads inside `in_place`
        self._inside = 0

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the method has the rounded parameters; what it computes under autocast is the same to the bit.

        Any number of threads may be inside at a time.
        """
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._set(self._rounded)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._set([exact for *_, exact in self._exact])

    def _set(self, parameters: list[nn.Parameter]) -> None:
        for (module, name, _), parameter in zip(self._exact, parameters, strict=True):
            setattr(module, name, parameter)
