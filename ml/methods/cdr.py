"""CDR: only the weights that matter most for the loss learn from it; the others merely decay.

Xia et al., ICLR 2021. After each backward pass:

1. Every weight w of convolutions and linear layers has the score |w·∂L/∂w|.
2. The share 1 - τ of all weights with the largest scores is critical; τ is the noise rate.
3. The gradients of critical weights are multiplied by 1 - τ, those of the others are set to 0.

Biases and normalisations learn as ever. Weight decay and momentum act on all weights, as in the released code. That
code runs every forward pass twice, and computes but does not use a ramp of the share; neither is done here. The paper
stops early by noisy validation accuracy: its result is the one at the best noisy validation epoch.

Published: resnet50, batches of 64, 200 epochs, SGD 0.01 times 0.1 at 40 and 80, weight decay 1e-3, a tenth held out.

Shapes: `n` scored weights in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from pydantic import Field
from torch import nn

from ml.blocks import single_network, small_loss
from ml.method import Batch, MethodParams, Phase, TrainHyperparameters
from ml.methods import About

ABOUT: About = {
    "title": "CDR",
    "paper": "Xia et al.: Robust Early-learning: Hindering the Memorization of Noisy Labels (ICLR 2021)",
    "idea": "Most weights of a network serve to memorise. In every step the gradient reaches only those that the loss "
    "depends on most, the fewer the more labels are wrong.",
    "relative_cost": 1.1,  # measured: a mask for batches of 32 to 128 adds 3 to 20 %; 1.33 where one forwards twice
    "needs": ["noise rate"],
    "presets": {
        "20 % noise": {"noise_rate": 0.2},
        "40 % noise": {"noise_rate": 0.4},
        "45 % noise": {"noise_rate": 0.45},
        "50 % noise": {"noise_rate": 0.5},
    },
    "training": {
        "*": {
            "network": "resnet50",
            "epochs": 200,
            "batch_size": 64,
            "learning_rate": 0.01,
            "weight_decay": 1e-3,
            "schedule": "multistep",
            "schedule_unit": "epoch",
            "milestones": (0.2, 0.4),
            "validation_fraction": 0.1,
        }
    },
}


class Params(MethodParams):
    """Parameters of CDR."""

    noise_rate: float = Field(
        default=0.2,
        ge=0.0,
        lt=1.0,
        description="τ: share of wrong labels, as well as it is known. The same share of the weights has no gradient.",
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """Cross-entropy with masked gradients."""

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs."""

        def mask_gradients(_: Batch) -> None:
            keep_critical(self.network.parameters(), self.params.noise_rate)

        optimizers = partial(self.optimizers, training)
        return [Phase(training.epochs, self.cross_entropy_step, optimizers, before_step=mask_gradients)]


@torch.no_grad()
def keep_critical(parameters: Iterable[nn.Parameter], noise_rate: float) -> None:
    """Multiply the gradients of critical weights by 1 - noise_rate, and set those of the other weights to 0, in place.

    The threshold stays on the device, so nothing waits for it.

    Args:
        parameters: of the network; those of rank 2 and 4 are scored, the others stay as they are.
        noise_rate: τ in [0, 1).
    """
    # 1. scores
    scored = [(p, p.grad) for p in parameters if p.dim() in (2, 4) and p.grad is not None]
    scores = [(parameter * gradient).abs() for parameter, gradient in scored]
    # 2. the score at which the critical share begins
    all_scores = torch.cat([score.flatten() for score in scores])  # (n,)
    dropped = len(all_scores) - small_loss.selected_count(noise_rate, len(all_scores))
    threshold = all_scores.topk(dropped + 1, largest=False, sorted=False).values.max()
    # 3. masked gradients
    for (_, gradient), score in zip(scored, scores, strict=True):
        gradient.mul_((score >= threshold) * (1.0 - noise_rate))
