"""CORES*: CORES selects labels once and for all; then a fresh network learns, the other images by consistency.

Cheng et al., ICLR 2021, section 5. Two phases:

1. Sample selection: CORES up to where its selection has formed.
2. Consistency: a fresh network learns the selected labels on strongly augmented views. Of the other images it sees two
   views and has to predict the strong one as it predicts the weak one.

The phases are shares of the epochs. The released code has 41 epochs of the first and 1600 of the second (the presets
`published` have that share). A training of fewer than some hundred epochs would then have no selection, so the default
is a fifth. The training's learning rate is that of phase 2, reached by a ramp and then moved by the training's
schedule. Momentum is plain, where the released code has Nesterov's. The strong view is that of `ml.data.autoaugment`,
and all views pass the network as one batch, whose statistics normalise them all (`view_statistics`).

Published: resnet34, batches of 320 labelled and 80 to 240 unlabelled images (400 to 560 together), learning rate 0.3
after the ramp, cosine to 0 that moves every step, weight decay 5e-4, nothing held out; phase 1 as in CORES: batches of
64, at a third of the rate, neither momentum nor weight decay. Settings for human labels were not published. Selected
labels are ranked by phase 1 alone, as phase 2 shows their images strongly augmented; the others by phase 2 as well.

Shapes: `B` labelled and `B'` unlabelled images of a step, `C` classes, logits (., C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ml.blocks import losses, reinitialisation, sample_selection, schedules, single_network
from ml.method import Batch, Network, Pass, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

CLIP = 5.0  # limit of the joint gradient norm in phase 2
# shares of phase 1: before the regulariser, its growth, before the selection
PLAIN, GROWTH, SELECT_FROM = 10 / 41, 30 / 41, 31 / 41
RAMP_START = 1 / 300  # of the learning rate in phase 2
PUBLISHED = {"sieve": 41 / 1641, "sieve_batch_size": 64, "sieve_momentum": 0.0, "sieve_weight_decay": 0.0}
TRAINING = {"network": "resnet34", "epochs": 1641, "learning_rate": 0.3, "validation_fraction": 0.0}

ABOUT: About = {
    "title": "CORES*",
    "paper": "Cheng et al.: Learning with Instance-Dependent Label Noise: A Sample Sieve Approach (ICLR 2021)",
    "idea": "CORES leaves out suspicious labels. A fresh network learns the rest, and has to predict two views of the "
    "images without a label alike.",
    "relative_cost": 1.2,
    "needs": [],
    "presets": {
        "published, 20 % noise": {**PUBLISHED, "unlabelled_share": 80 / 400, "consistency_weight": 0.2},
        "published, 40 % noise": {**PUBLISHED, "unlabelled_share": 160 / 480, "consistency_weight": 0.4},
        "published, 60 % noise": {**PUBLISHED, "unlabelled_share": 240 / 560, "consistency_weight": 0.9},
    },
    "training": {
        "published, 20 % noise": {**TRAINING, "batch_size": 400},
        "published, 40 % noise": {**TRAINING, "batch_size": 480},
        "published, 60 % noise": {**TRAINING, "batch_size": 560},
    },
}


class Params(single_network.ViewParams):
    """Parameters of CORES*."""

    sieve: float = Field(
        default=0.2, gt=0.0, le=1.0, description="Share of the epochs of phase 1, which selects labels."
    )
    sieve_rate: float = Field(
        default=1 / 3, gt=0.0, le=100.0, description="Learning rate of phase 1, as a multiple of the training's."
    )
    sieve_batch_size: int | None = Field(
        default=None, ge=2, le=8192, description="Images of a step of phase 1, at most the training's; null: as many."
    )
    sieve_momentum: float | None = Field(
        default=None, ge=0.0, lt=1.0, description="Momentum of phase 1; null: the training's."
    )
    sieve_weight_decay: float | None = Field(
        default=None, ge=0.0, le=1.0, description="Weight decay of phase 1; null: the training's."
    )
    beta: float = Field(default=2.0, ge=0.0, le=20.0, description="Weight of the regulariser once it is fully on.")
    unlabelled_share: float = Field(
        default=0.2, gt=0.0, lt=1.0, description="Share of a batch without labels: a fifth at 20 % noise, 3/7 at 60."
    )
    consistency_weight: float = Field(
        default=0.2,
        ge=0.0,
        le=100.0,
        description="Weight of the loss of unlabelled images: 0.2 at 20 % noise, 0.4 at 40, 0.9 at 60.",
    )
    ramp: float = Field(
        default=120 / 1600, ge=0.0, le=1.0, description="Share of phase 2 over which the learning rate grows."
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """Selection, then consistency."""

    former_state_names: ClassVar = {"sieve.kept": "selection.selected", "sieve.": "selection."}

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.selection = sample_selection.SampleSelection(labels, self.network.class_count)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Selection, at least in the last of several epochs of phase 1; then consistency, if there are epochs left."""
        p = self.params
        first, rest = schedules.phase_lengths(training.epochs, (p.sieve,))

        # phase 1: as CORES, at a constant rate
        selecting = sample_selection.selection_phase(
            self.network,
            self.selection,
            replace(
                training,
                momentum=training.momentum if p.sieve_momentum is None else p.sieve_momentum,
                weight_decay=training.weight_decay if p.sieve_weight_decay is None else p.sieve_weight_decay,
            ),
            epochs=first,
            begin=round(PLAIN * first),
            growth=round(GROWTH * first),
            select_from=max(1, min(round(SELECT_FROM * first), first - 1)),
            largest=p.beta,
            factor=schedules.constant,
            scale=p.sieve_rate,
            batch_size=p.sieve_batch_size,
        )
        if rest == 0:
            return [selecting]

        # phase 2: a ramp, then the training's schedule
        def factor(progress: float) -> float:
            if progress < p.ramp:
                return max(RAMP_START, schedules.linear_ramp(progress, p.ramp))
            return training.factor((progress - p.ramp) / max(1.0 - p.ramp, 1e-9))

        consistency = Phase(
            rest,
            self._consistency_step,
            lambda: self.optimizers(training, schedule=factor),
            enter=self._start_fresh,
            passes=self._passes,
            views=("weak", "strong"),
            clip=CLIP,
            name="consistency",
        )
        return [selecting, consistency]

    def _start_fresh(self, _: TrainContext) -> None:
        reinitialisation.reinitialise(self.network, self.make_network(), reinitialisation.NETWORK_PARTS)

    def _passes(self) -> Sequence[Pass]:
        selected = self.selection.selected
        if bool(selected.all()) or not bool(selected.any()):
            return [Pass(torch.ones_like(selected))]
        return [Pass(selected, ~selected, self.params.unlabelled_share)]

    def _consistency_step(self, batch: Batch) -> Tensor:
        """Cross-entropy of labelled images' strong view, and KL between both views of the others."""
        if batch.unlabelled is None:
            alone = self.network(batch.views[1])
            return batch.label_loss(lambda labels, _: losses.cross_entropy(alone, labels))
        weak_views, strong_views = batch.unlabelled.views
        all_strong = torch.cat([batch.views[1], strong_views])
        weak, both = single_network.forward_views(self.network, (weak_views, all_strong), self.params.view_statistics)
        labelled, strong = both[: len(batch.labels)], both[len(batch.labels) :]
        batch.unlabelled.record_logits(weak)
        supervised = batch.label_loss(lambda labels, _: losses.cross_entropy(labelled, labels))
        return supervised + self.params.consistency_weight * losses.consistency_kl(weak, strong)
