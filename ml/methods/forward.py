"""Forward correction: the network predicts clean labels, and the transition matrix makes given ones of them for the
loss.

Patrini et al., CVPR 2017, Theorem 2. A first network learns the given labels plainly; its answers to anchor points are
the matrix T; the network is made anew and trained on H(Y, softmax(z) T). It is asked without T. With a known T there is
no first stage. Each stage runs through the spec's whole schedule.

The estimate is made with the weights of the first stage's best epoch by noisy validation accuracy (the released code
takes the lowest validation loss) and with the images that are trained on. A sample set aside for one class stays whole
for the others (the released code zeroes its score in place).

Published: post-activation ResNets, batches of 128, a tenth held out. CIFAR-10: 120 epochs a stage, SGD 0.1 times 0.1 at
40 and 80, weight decay 1e-4. CIFAR-100: 150 epochs a stage, drops after 80 and 120, weight decay 1e-3.

Shapes: `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field
from torch import Tensor

from ml.blocks import best_weights, schedules, single_network, transition
from ml.method import Batch, Network, Optimizers, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

CONTINUED_RATE = 0.1  # times the spec's, as published for going on with the first stage's network

ABOUT: About = {
    "title": "Forward correction",
    "paper": "Patrini et al.: Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach "
    "(CVPR 2017)",
    "idea": "A first network tells which class is mistaken for which. A second one learns by a loss that compares the "
    "given labels with what those mistakes would make of its answers, so that the answers themselves can be right.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {
        "cifar10": {},
        "cifar100": {"anchor_quantile": 1.0},
        "continued": {"restart": False, "anchor_quantile": 1.0},
    },
}


class Params(transition.TransitionParams):
    """Settings of forward correction."""

    restart: bool = Field(
        default=True,
        description="Train a new network with the matrix; off: go on with the one that it came from, at a tenth of the "
        "learning rate.",
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """Cross-entropy, an estimate of T, and cross-entropy through T."""

    transition: Tensor

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.kept = best_weights.BestWeights(self.network)
        self.register_buffer("transition", transition.known_matrix(params.transition, self.network.class_count))

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Plain, then corrected; corrected alone where T is known."""

        def optimizers() -> Optimizers:
            return Optimizers((training.sgd(self.network.parameters()),), training.factor)

        def going_on() -> Optimizers:
            scale = 1.0 if self.params.restart else CONTINUED_RATE
            return Optimizers((training.sgd(self.network.parameters(), scale=scale),), training.factor)

        if self.params.transition is not None:
            return [Phase(training.epochs, self._corrected, optimizers, name="forward")]
        first, second = schedules.phase_lengths(training.epochs, [self.params.estimate])
        return [
            Phase(first, self.plain, optimizers, begin_epoch=self._keep, name="estimate"),
            Phase(second, self._corrected, going_on, enter=self._estimate, name="forward"),
        ]

    def _corrected(self, batch: Batch) -> Tensor:
        logits = self.network(batch.images)
        batch.record_logits(logits)
        return transition.forward_cross_entropy(logits, batch.labels, self.transition)

    def _keep(self, lab: TrainContext) -> None:
        self.kept.follow(lab, self.network, since=0)

    def _estimate(self, lab: TrainContext) -> None:
        self._keep(lab)
        self.kept.restore(self.network)
        answers = lab.score(lambda images: self.network(images).float().softmax(dim=1))
        self.transition.copy_(transition.estimate_matrix(answers, self.params.anchor_quantile))
        if self.params.restart:
            self.network.load_state_dict(self.make().state_dict())
