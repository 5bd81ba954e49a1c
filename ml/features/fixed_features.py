"""The common base of methods that solve for the classifier of a fixed network and take no steps.

Shapes: `M` images trained on, `D` features, `C` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ml.blocks import single_network
from ml.features import cross_validation, linear_probe
from ml.method import MethodParams, Network, Phase, TrainContext, TrainHyperparameters


class FixedFeaturesParams(MethodParams):
    """How the classifier is fitted."""

    components: int = Field(
        default=linear_probe.COMPONENTS,
        ge=1,
        le=4096,
        description="Principal components of the features that the classifier sees.",
    )
    folds: int = Field(
        default=cross_validation.FOLDS,
        ge=2,
        le=20,
        description="Parts of the images that are left out in turn, to predict each image without its own label.",
    )


P = TypeVar("P", bound=FixedFeaturesParams)


class FixedFeaturesMethod(single_network.SingleNetworkMethod[P]):
    """One network, of which only the classifier changes, once.

    Attributes:
        labels: Given labels int64 (M,).
        is_solved: Whether the classifier has been solved for, bool ().
    """

    labels: Tensor
    is_solved: Tensor

    def __init__(self, params: P, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.network.requires_grad_(False)
        self.classifier.requires_grad_(True)
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("is_solved", torch.tensor(False))

    @property
    def classifier(self) -> nn.Linear:
        """The network's last layer, D -> C."""
        layer = self.network.classifier
        assert isinstance(layer, nn.Linear)
        return layer

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase without steps."""
        return [
            Phase(
                training.epochs,
                self.cross_entropy_step,  # of no step; what estimates memory asks for a loss
                lambda: self.optimizers(training),
                begin_epoch=self._solve_once,
                passes=tuple,
                name="probe",
            )
        ]

    def solve(self, features: Tensor, context: TrainContext) -> Tensor:
        """Set the classifier, and what else the method learns.

        Args:
            features: Of all images trained on, f32 (M, D).
            context: Of the training.

        Returns:
            Logits (M, C), each image's from a fit without its label.
        """
        raise TypeError(f"{type(self).__name__} solves for no classifier")

    def _solve_once(self, context: TrainContext) -> None:
        if not bool(self.is_solved):
            context.record_logits(self.solve(context.score(self.network.features), context))
            self.is_solved.fill_(True)
