"""CORES*: the sieve of CORES sets labels aside once and for all; a fresh network learns their images by consistency.

Cheng et al., ICLR 2021, section 5. Stage 1 is CORES up to where its sieve has formed. Stage 2 trains a fresh network on
strongly distorted views of the labels kept; of the other images two views are to be answered alike, a weak one, which
teaches, and a strong one.

The stages are shares of the epochs. The released code takes 40 epochs for the sieve and 1600 for the rest (`published`
has that share); a training of fewer than some hundred epochs would have no sieve by it, so the default is a fifth. The
spec's learning rate is that of stage 2, reached by a ramp and then moved by the spec's schedule. Its momentum is plain,
where the code has Nesterov's.

Published: resnet34, batches of 320 labelled and 80 to 240 unlabelled images (400 to 560 together), learning rate 0.3
after the ramp, cosine to 0, weight decay 5e-4, nothing held out; stage 1 as in CORES, at a third of the rate. Settings
for human labels were not published. Labels kept are ranked by stage 1 alone, whose images stage 2 shows distorted; the
others by stage 2 as well.

Shapes: `B` labelled and `B'` unlabelled images of a step, `C` classes, logits (., C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from ml.blocks import losses, reinitialisation, sample_selection, schedules, single_network
from ml.method import Batch, MethodParams, Network, Optimizers, Pass, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

CLIP = 5.0  # of the joint gradient norm in stage 2
PLAIN, GROWTH, SIEVED = 10 / 40, 30 / 40, 31 / 40  # of stage 1: without the regulariser, its growth, from when sieved
LOWEST = 1 / 300  # where the ramp of stage 2 begins
PUBLISHED = {"sieve": 40 / 1640}

ABOUT: About = {
    "title": "CORES*",
    "paper": "Cheng et al.: Learning with Instance-Dependent Label Noise: A Sample Sieve Approach (ICLR 2021)",
    "idea": "CORES sieves out suspicious labels. A fresh network learns the rest, and answers two views of the images "
    "without a label alike.",
    "relative_cost": 1.2,
    "needs": [],
    "presets": {
        "published, 20 % noise": {**PUBLISHED, "unlabelled_share": 80 / 400, "consistency_weight": 0.2},
        "published, 40 % noise": {**PUBLISHED, "unlabelled_share": 160 / 480, "consistency_weight": 0.4},
        "published, 60 % noise": {**PUBLISHED, "unlabelled_share": 240 / 560, "consistency_weight": 0.9},
    },
}


class Params(MethodParams):
    """The settings of CORES*."""

    sieve: float = Field(default=0.2, gt=0.0, le=1.0, description="Share of the epochs that form the sieve.")
    sieve_rate: float = Field(
        default=1 / 3, gt=0.0, le=100.0, description="Their learning rate, as a multiple of the training's."
    )
    beta: float = Field(default=2.0, ge=0.0, le=20.0, description="Weight of the regulariser once it is fully on.")
    unlabelled_share: float = Field(
        default=0.2, gt=0.0, lt=1.0, description="Of a batch: images without a label; a fifth at 20 % noise, 3/7 at 60."
    )
    consistency_weight: float = Field(
        default=0.2, ge=0.0, le=100.0, description="Of their loss: 0.2 at 20 % noise, 0.4 at 40, 0.9 at 60."
    )
    ramp: float = Field(
        default=120 / 1600, ge=0.0, le=1.0, description="Share of stage 2 over which the learning rate grows."
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """The sieve, then a fresh network."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.sieve = sample_selection.SampleSelection(labels, self.network.class_count)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Stage 1 sieves at least in its last epoch, if it has two."""
        p = self.params
        first, rest = schedules.phase_lengths(training.epochs, (p.sieve,))
        forming = sample_selection.selection_phase(
            self.network,
            self.sieve,
            training,
            epochs=first,
            begin=round(PLAIN * first),
            growth=round(GROWTH * first),
            since=max(1, min(round(SIEVED * first), first - 1)),
            largest=p.beta,
            factor=schedules.constant,
            scale=p.sieve_rate,
        )

        def factor(progress: float) -> float:
            if progress < p.ramp:
                return max(LOWEST, schedules.linear_ramp(progress, p.ramp))
            return training.factor((progress - p.ramp) / max(1.0 - p.ramp, 1e-9))

        def optimizers() -> Optimizers:
            return Optimizers((training.sgd(self.network.parameters()),), factor)

        if rest == 0:
            return [forming]
        consistent = Phase(
            rest,
            self._consistent,
            optimizers,
            enter=self._begin_anew,
            passes=self._passes,
            views=("weak", "strong"),
            clip=CLIP,
            name="consistency",
        )
        return [forming, consistent]

    def _begin_anew(self, _: TrainContext) -> None:
        reinitialisation.reinitialise(self.network, self.make(), reinitialisation.NETWORK_PARTS)

    def _passes(self) -> Sequence[Pass]:
        kept = self.sieve.kept
        if bool(kept.all()) or not bool(kept.any()):
            return [Pass(torch.ones_like(kept))]
        return [Pass(kept, ~kept, self.params.unlabelled_share)]

    def _consistent(self, batch: Batch) -> Tensor:
        """Labelled images by their strong view, the others by both, in one pass."""
        beside = () if batch.unlabelled is None else batch.unlabelled.views
        logits = self.network(torch.cat([batch.views[1], *beside]))
        supervised = losses.cross_entropy(logits[: len(batch.labels)], batch.labels)
        if batch.unlabelled is None:
            return supervised
        weak, strong = logits[len(batch.labels) :].chunk(2)
        batch.unlabelled.record_logits(weak)
        return supervised + self.params.consistency_weight * losses.consistency_kl(weak, strong)
