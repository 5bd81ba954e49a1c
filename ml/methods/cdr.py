"""CDR: only the weights that matter most for the loss learn from it; the others merely decay.

Xia et al., ICLR 2021. After each backward pass every weight w of convolutions and linear layers has a score, |w·∂L/∂w|.
Of them all the share 1 - τ with the largest scores keeps 1 - τ times its gradient, the rest keeps none; τ is the noise
rate. Biases and normalisations learn as ever; weight decay and momentum act on all, as in the released code. That code
forwards twice a step and computes, but does not use, a ramp of the share: neither is here.
The paper stops early, by noisy validation accuracy: its number is the one reported at the best noisy validation epoch.

Published: resnet50, batches of 64, 200 epochs, SGD 0.01 times 0.1 at 40 and 80, weight decay 1e-3, a tenth held out.

Shapes: `B` batch, `C` classes, logits (B, C); `n` scored weights in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
}


class Params(MethodParams):
    """The setting of CDR."""

    noise_rate: float = Field(
        default=0.2,
        ge=0.0,
        lt=1.0,
        description="τ: share of wrong labels, as well as it is known; so large a share of the weights learns nothing.",
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """Cross-entropy whose gradient is masked."""

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs."""

        def mask(_: Batch) -> None:
            keep_critical(self.network.parameters(), self.params.noise_rate)

        return [Phase(training.epochs, self.plain, lambda: self.optimizers(training), before_step=mask)]


@torch.no_grad()
def keep_critical(parameters: Iterable[nn.Parameter], noise_rate: float) -> None:
    """Scale the gradients of the critical weights by 1 - noise_rate, and set those of the other weights to 0.

    Weights are parameters of rank 2 and 4. Nothing waits: the threshold stays on the device.
    """
    scored = [(p, p.grad) for p in parameters if p.dim() in (2, 4) and p.grad is not None]
    scores = [(parameter * gradient).abs() for parameter, gradient in scored]
    together = torch.cat([each.flatten() for each in scores])
    dropped = len(together) - small_loss.kept_count(noise_rate, len(together))
    threshold = together.topk(dropped + 1, largest=False, sorted=False).values.max()
    for (_, gradient), score in zip(scored, scores, strict=True):
        gradient.mul_((score >= threshold) * (1.0 - noise_rate))
