"""Builds the networks of a training: freshly initialised or pretrained, whole or the part of one that is trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ml import errors, networks
from ml.distributed import process_group, sharding
from ml.method import Network
from ml.networks import chain
from ml.networks import weights as network_weights
from ml.networks.weights import WeightsRecord
from ml.training import randomness
from ml.training.spec import TrainingSpec, seed_for


def build_network(spec: TrainingSpec, classes: int, weights: Path | None) -> Network:
    """The spec's network, freshly initialised or pretrained.

    Args:
        spec: Names the network and says whether it is pretrained.
        classes: C.
        weights: The folder of pretrained weights, if there is one.

    Raises:
        UnknownName: No such network.
        MissingWeights: Its pretrained weights are not installed or do not fit.
    """
    record = find_weights(spec, weights)
    file = None if record is None or weights is None else network_weights.file_of(weights, record)
    try:
        return networks.build(spec.network, classes, spec.image_size, file)
    except networks.UnknownNetwork as error:
        raise errors.UnknownName(str(error), code="unknown_network") from error
    except ValueError as error:
        raise errors.MissingWeights(f"the pretrained weights of {spec.network} do not fit: {error}") from error


def trained_part(network: Network, spec: TrainingSpec) -> Network:
    """The part of a pretrained network that the spec trains.

    Raises:
        UnusableSpec: The network cannot be divided so.
    """
    assert isinstance(network, chain.Chain)
    try:
        return chain.cut(network, spec.tune)[1]
    except ValueError as error:
        raise errors.UnknownName(f"{spec.network}: {error}", code="unsupported_tune") from error


def find_weights(spec: TrainingSpec, weights: Path | None) -> WeightsRecord | None:
    """The record of the spec's pretrained weights; None for a network that starts at random.

    Raises:
        MissingWeights: They are not installed.
    """
    return network_weights.find(weights, spec.network) if spec.pretrained else None


def normalisation(record: WeightsRecord) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1] that pretrained weights expect, float64 (3,) each."""
    return torch.tensor(record.mean, dtype=torch.float64), torch.tensor(record.std, dtype=torch.float64)


class NetworkFactory:
    """Builds another network at each call, each initialised from a seed of its own.

    Attributes:
        built: How many networks there are so far; it decides the seed of the next.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        classes: int,
        weights: Path | None,
        device: torch.device,
        group: process_group.ProcessGroup | None,
    ) -> None:
        """`weights` is the folder of pretrained weights; with a `group`, every network is divided among its ranks."""
        self.built = 0
        self._spec, self._classes, self._weights = spec, classes, weights
        self._device, self._group = device, group

    def __call__(self) -> Network:
        self.built += 1
        with randomness.seeded(seed_for(self._spec.seed, f"network {self.built}")):
            network: Network = build_network(self._spec, self._classes, self._weights)
        if self._spec.tune != "all":
            network = trained_part(network, self._spec)
        network = network.to(self._device)
        return network if self._group is None else sharding.shard_network(network, self._group)

    def build_whole(self) -> chain.Chain:
        """The whole pretrained network, on the CPU: its frozen part becomes an encoder. Not counted in `built`."""
        with randomness.seeded(seed_for(self._spec.seed, "backbone")):
            network = build_network(self._spec, self._classes, self._weights)
        assert isinstance(network, chain.Chain)
        return network
