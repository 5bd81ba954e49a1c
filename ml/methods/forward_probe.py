"""A linear probe that knows how labels were mistaken: forward correction on fixed features.

The transition matrix T is estimated from the labels of nearest neighbours and from what the probe itself predicts out
of fold (`ml.features.label_noise`); the probe is then fitted to the given labels through T, so that it predicts clean
classes (Patrini et al., CVPR 2017, Theorem 2). Noise that mistakes one class for another, which a plain probe learns,
does it little harm. On the features of a pretrained network it takes seconds. All work is done when the first epoch
begins; no later epoch changes anything. Without pretrained weights it probes random features.

Labels are ranked by logits of clean classes, from classifiers that did not learn from the image.

Shapes: `M` images trained on, `D` features, `C` classes, T (C, C) with rows that sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ml.features import fixed_features, label_noise, linear_probe
from ml.method import Network, NoiseEstimate, TrainContext
from ml.methods import About

ABOUT: About = {
    "title": "Forward-corrected probe",
    "paper": "Patrini et al.: Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach (CVPR "
    "2017); Zhu et al.: Clusterability as an Alternative to Anchor Points When Learning with Noisy Labels (ICML 2021)",
    "idea": "Only the last layer learns, on features that a pretrained network has computed once for every image. "
    "Neighbouring images tell which class is mistaken for which, and the layer learns through these mistakes.",
    "relative_cost": 0.1,
    "needs": [],
    "presets": {"default": {}, "photographs": {}},
    "training": {"photographs": {"tune": "none", "epochs": 1}},
}


class Params(fixed_features.FixedFeaturesParams):
    """Parameters of the forward-corrected probe."""


class Method(fixed_features.FixedFeaturesMethod[Params]):
    """Forward-corrected logistic regression on fixed features.

    Attributes:
        transition: The estimate of T, f32 (C, C); the identity before training.
        noise_rate: The estimated share of wrong labels and the ends of its interval, f32 (3,).
    """

    transition: Tensor
    noise_rate: Tensor

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.register_buffer("transition", torch.eye(self.network.class_count))
        self.register_buffer("noise_rate", torch.tensor([0.0, 0.0, 1.0]))

    def solve(self, features: Tensor, context: TrainContext) -> Tensor:
        """See `fixed_features.FixedFeaturesMethod.solve`."""
        noise = label_noise.estimate(
            features,
            self.labels,
            self.network.class_count,
            context.generator("folds"),
            components=self.params.components,
            folds=self.params.folds,
        )
        linear_probe.fold_into(self.classifier, noise.projection, noise.classifier)
        self.transition.copy_(noise.transition)
        self.noise_rate.copy_(torch.tensor([noise.noise_rate, *noise.interval]))
        return noise.log_probabilities

    def noise_estimate(self) -> NoiseEstimate | None:
        """See `ml.method.Method.noise_estimate`."""
        if not bool(self.is_solved):
            return None
        rate, low, high = self.noise_rate.tolist()
        return NoiseEstimate(self.transition.double().cpu(), rate, (low, high))

    def findings(self) -> dict[str, Any]:
        """The noise rate and its interval."""
        rate, low, high = self.noise_rate.tolist()
        return {"noise_rate": rate, "noise_rate_interval": [low, high]} if bool(self.is_solved) else {}
