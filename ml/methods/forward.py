"""Forward correction: the network predicts clean labels, and the loss compares given labels with what T makes of them.

Patrini et al., CVPR 2017, Theorem 2. Two phases, each of which runs through the training's whole schedule:

1. Estimate: a network learns the given labels plainly; its predictions for anchor points are the transition matrix T.
2. Forward: a fresh network is trained on H(Y, softmax(z) T), Eq. 5. It predicts without T.

With a known T there is no first phase. T is estimated with the weights of the first phase's best epoch by noisy
validation accuracy (the released code takes the lowest validation loss) and on the images that are trained on. An image
that is left out as an outlier for one class still counts for the others (the released code sets its score to zero in
place).

Published: pre-activation ResNets of depth 6n + 2, batches of 128, a tenth held out. CIFAR-10: 120 epochs a phase, SGD
0.1 times 0.1 after 41 and 81, weight decay 2e-4. CIFAR-100: 150 epochs a phase, drops after 81 and 121, weight decay
2e-3. The released code adds Keras' l2(d), d times the sum of squares, whose gradient is that of a weight decay of 2d;
it adds it for the weights of convolutions and of the classifier alone.

Shapes: `B` batch, `C` classes, logits (B, C), T (C, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ml.blocks import best_weights, schedules, single_network, transition
from ml.method import Batch, Network, Optimizers, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

PUBLISHED = {
    "batch_size": 128,
    "learning_rate": 0.1,
    "schedule": "multistep",
    "schedule_unit": "epoch",
    "validation_fraction": 0.1,
}
CONTINUED_RATE = 0.1  # times the training's, as published for continuing with the first phase's network

ABOUT: About = {
    "title": "Forward correction",
    "paper": "Patrini et al.: Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach "
    "(CVPR 2017)",
    "idea": "A first network estimates which class is mistaken for which. A second one learns by a loss that compares "
    "the given labels with its predictions after those mistakes, so that the predictions themselves can be right.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {
        "cifar10": {},
        "cifar100": {"anchor_quantile": 1.0},
        "continued": {"restart": False, "anchor_quantile": 1.0},
    },
    "training": {
        "cifar10": {**PUBLISHED, "epochs": 240, "weight_decay": 2e-4, "milestones": (41 / 120, 81 / 120)},
        "cifar100": {**PUBLISHED, "epochs": 300, "weight_decay": 2e-3, "milestones": (81 / 150, 121 / 150)},
    },
}


class Params(transition.TransitionParams):
    """Parameters of forward correction."""

    restart: bool = Field(
        default=True,
        description="Train a fresh network with the matrix; off: continue with the one that estimated it, at a tenth "
        "of the learning rate.",
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """Cross-entropy, an estimate of T, and cross-entropy through T."""

    former_state_names: ClassVar = {"kept.": "best_weights."}
    transition: Tensor

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.best_weights = best_weights.BestWeights(self.network)
        self.register_buffer("transition", transition.known_matrix(params.transition, self.network.class_count))

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Estimate and forward; forward alone where T is known."""

        def scheduled() -> Optimizers:
            return self.optimizers(training)

        def continued() -> Optimizers:
            return self.optimizers(training, scale=1.0 if self.params.restart else CONTINUED_RATE)

        if self.params.transition is not None:
            return [Phase(training.epochs, self._forward_step, scheduled, name="forward")]
        first, second = schedules.phase_lengths(training.epochs, [self.params.estimate])
        return [
            Phase(first, self.cross_entropy_step, scheduled, begin_epoch=self._update_best, name="estimate"),
            Phase(second, self._forward_step, continued, enter=self._estimate, name="forward"),
        ]

    def _forward_step(self, batch: Batch) -> Tensor:
        """Eq. 5."""
        logits = self.predict_batch(batch)
        return batch.label_loss(lambda labels, _: transition.forward_cross_entropy(logits, labels, self.transition))

    def _update_best(self, context: TrainContext) -> None:
        self.best_weights.update(context, self.network, first_epoch=0)

    def _estimate(self, context: TrainContext) -> None:
        """Estimate T with the best weights; then start from a fresh network, or continue with these weights."""
        self._update_best(context)
        self.best_weights.restore(self.network)
        probabilities = context.score(lambda images: self.network(images).float().softmax(dim=1))
        self.transition.copy_(transition.estimate_matrix(probabilities, self.params.anchor_quantile))
        if self.params.restart:
            self.network.load_state_dict(self.make_network().state_dict())
