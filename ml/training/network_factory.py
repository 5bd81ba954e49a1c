"""Builds the networks of a training: freshly initialised or pretrained, whole or the part of one that is trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ml import errors, networks
from ml.distributed import process_group, sharding
from ml.method import Network
from ml.networks import chain
from ml.networks import weights as network_weights
from ml.networks.weights import WeightsRecord
from ml.training import randomness
from ml.training.spec import TrainingSpec, seed_for


def find_weights(spec: TrainingSpec, weights: Path | None) -> WeightsRecord | None:
    """The record of the spec's pretrained weights; None for a network that starts at random.

    Raises:
        MissingWeights: They are not installed, or damaged.
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
        file: Path | None,
        device: torch.device,
        group: process_group.ProcessGroup | None,
    ) -> None:
        """Bind what all networks share.

        Args:
            spec: Names the network and says which part of it is trained.
            classes: C.
            file: The spec's pretrained weights; None starts at random.
            device: Where networks are trained.
            group: The ranks among which every network is divided, if there are any.
        """
        self.built = 0
        self._spec, self._classes, self._file = spec, classes, file
        self._device, self._group = device, group

    def __call__(self) -> Network:
        self.built += 1
        network: Network = self._build(f"network {self.built}")
        if self._spec.batch_norm == "pretrained":
            chain.fix_statistics(network)
        if self._spec.tune != "all":
            network = self._divide(network, self._spec.tune)[1]
        network = network.to(self._device)
        return network if self._group is None else sharding.shard_network(network, self._group)

    def build_frozen_part(self) -> nn.Sequential:
        """The part of the pretrained network that is not trained, on the CPU. It does not count as `built`.

        Where all of it is trained, what locates objects: a copy of all but the classifier, as it was before.
        """
        return self._divide(self._build("backbone"), chain.frozen_depth(self._spec.tune))[0]

    def _build(self, concern: str) -> Network:
        """A whole network; raises UnknownName, or MissingWeights if the weights do not fit."""
        with randomness.seeded(seed_for(self._spec.seed, concern)):
            try:
                return networks.build(self._spec.network, self._classes, self._spec.image_size, self._file)
            except networks.UnknownNetwork as error:
                raise errors.UnknownName(str(error), code="unknown_network") from error
            except ValueError as error:
                raise errors.MissingWeights(
                    f"the pretrained weights of {self._spec.network} do not fit: {error}"
                ) from error

    def _divide(self, network: Network, tune: str) -> tuple[nn.Sequential, chain.Chain]:
        """The frozen and the trained part of a network; UnknownName (unsupported_tune) if it cannot be divided so."""
        assert isinstance(network, chain.Chain)
        try:
            return chain.cut(network, tune)
        except ValueError as error:
            raise errors.UnknownName(f"{self._spec.network}: {error}", code="unsupported_tune") from error
