"""DivideMix: two networks, each of which selects clean labels for the other; the rest is learned without labels.

Li, Socher, Hoi, ICLR 2020, Algorithm 1. Two phases:

1. Warm-up: both networks train plainly on all labels.
2. MixMatch: every epoch fits a mixture of two Gaussians to each network's losses (co-divide). Then the networks train
   one after the other, by MixMatch on what the other one's mixture calls clean (labelled, targets co-refined) and noisy
   (unlabelled, targets co-guessed).

Epochs, batch size, learning rate and schedule are the training's; the paper has 300, 128 (64 labelled, 64 unlabelled),
0.02 and one drop at half. Warm-up and ramp are shares of the epochs. Left out: Clothing1M's balanced subset per epoch.

Shapes: `B` labelled and `B'` unlabelled images of a step, `M` training images, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ml import method
from ml.blocks import gaussian_mixture, losses, mixmatch, mixup, schedules, two_networks
from ml.method import (
    ENSEMBLE,
    Batch,
    MethodParams,
    Network,
    Optimizers,
    Pass,
    Phase,
    TrainContext,
    TrainHyperparameters,
    Unlabelled,
)
from ml.methods import About

WARM_UP = 1 / 30  # 10 of 300 epochs on CIFAR-10
CIFAR_100 = {"warm_up": 0.1}  # 30 of 300

ABOUT: About = {
    "title": "DivideMix",
    "paper": "Li, Socher, Hoi: DivideMix: Learning with Noisy Labels as Semi-supervised Learning (ICLR 2020)",
    "idea": "Wrong labels are learned late and have large losses at first. Each of two networks divides the set by its "
    "losses for the other, which learns the suspicious images without their labels.",
    "relative_cost": 8.0,  # grows with the share of clean images: 10 at 20 % noise, 7 at half; measured 5.9 to 7.9
    "mixes": True,
    "needs": [],
    "presets": {
        "default": {},
        "cifar10 symmetric 20 %": {"unlabelled_weight": 0.0},
        "cifar10 symmetric 50 % or 80 %": {"unlabelled_weight": 25.0},
        "cifar10 symmetric 90 %": {"unlabelled_weight": 50.0, "clean_threshold": 0.6, "averaged_epochs": 5},
        "cifar10 asymmetric 40 %": {"unlabelled_weight": 0.0, "warm_up_penalty": 1.0},
        "cifar100 symmetric 20 %": {**CIFAR_100, "unlabelled_weight": 25.0},
        "cifar100 symmetric 50 % or 80 %": {**CIFAR_100, "unlabelled_weight": 150.0},
        "cifar100 symmetric 90 %": {
            **CIFAR_100,
            "unlabelled_weight": 150.0,
            "clean_threshold": 0.6,
            "averaged_epochs": 5,
        },
    },
    "training": {
        "cifar*": {
            "network": "preact_resnet18",
            "epochs": 300,
            "batch_size": 128,
            "learning_rate": 0.02,
            "weight_decay": 5e-4,
            "schedule": "multistep",
            "schedule_unit": "epoch",
            "milestones": (0.5,),
            "validation_fraction": 0.0,
        }
    },
}


class Params(MethodParams):
    """Parameters of DivideMix."""

    warm_up: float = Field(
        default=WARM_UP,
        ge=0.0,
        le=1.0,
        description="Share of the epochs of plain training on all labels before the first division; at least one.",
    )
    warm_up_penalty: float = Field(
        default=0.0,
        ge=0.0,
        le=10.0,
        description="Weight of the negative entropy in the warm-up: 1 for asymmetric noise, where networks become "
        "confident of wrong labels too soon to be divided by their losses.",
    )
    clean_threshold: float = Field(
        default=0.5, ge=0.0, lt=1.0, description="A label counts as clean above this probability."
    )
    averaged_epochs: int = Field(
        default=1,
        ge=1,
        le=20,
        description="The mixture is fitted to losses averaged over so many last epochs; 5 at 90 % noise.",
    )
    temperature: float = Field(
        default=0.5, ge=0.05, le=1.0, description="Sharpening of the guessed and refined targets; 1 does not sharpen."
    )
    alpha: float = Field(
        default=4.0,
        gt=0.0,
        le=100.0,
        description="Parameter of the Beta distribution of the mixing ratio; large values mix half and half.",
    )
    unlabelled_weight: float = Field(
        default=25.0,
        ge=0.0,
        le=1000.0,
        description="Weight of the unlabelled images' loss: 0 at little noise; at half 25 for 10 classes, 150 for 100.",
    )
    ramp: float = Field(
        default=16 / 300,
        ge=0.0,
        le=1.0,
        description="Share of the epochs, after the warm-up, over which that weight grows from 0.",
    )


class Method(method.Method):
    """Algorithm 1."""

    labels: Tensor
    losses: Tensor
    clean_probability: Tensor

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build both networks; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.params = params
        self.networks = nn.ModuleList([network(), network()])
        self.register_buffer("labels", labels, persistent=False)
        # (averaged epochs, networks, M): the last epoch's losses last, NaN where there were fewer epochs so far
        self.register_buffer("losses", torch.full((params.averaged_epochs, 2, len(labels)), torch.nan))
        self.register_buffer("clean_probability", torch.ones(2, len(labels)))  # by each network's own mixture

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Warm-up, then MixMatch with the same optimizers and schedule."""
        warm_up = min(training.epochs, max(1, round(self.params.warm_up * training.epochs)))

        def optimizers() -> Optimizers:
            return Optimizers(tuple(training.sgd(network.parameters()) for network in self.networks), training.factor)

        # phase 1: each network makes a pass over all images
        all_images = torch.arange(len(self.labels))
        passes = [Pass(all_images), Pass(all_images)]
        warming_up = Phase(warm_up, self._warm_up_step, optimizers, passes=lambda: passes, name="warm-up")
        if warm_up == training.epochs:
            return [warming_up]

        # phase 2: the weight of unlabelled images grows from its start
        def loss(batch: Batch) -> Tensor:
            if batch.unlabelled is None:
                return self._cross_entropy_step(batch)
            elapsed = batch.progress * training.epochs - warm_up
            ramp = schedules.linear_ramp(elapsed, self.params.ramp * training.epochs)
            return self._mixmatch_step(batch, batch.unlabelled, self.params.unlabelled_weight * ramp)

        mixmatch_phase = Phase(
            training.epochs - warm_up,
            loss,
            None,
            begin_epoch=self._co_divide,
            passes=self._passes,
            views=("weak", "weak"),
            name="mixmatch",
        )
        return [warming_up, mixmatch_phase]

    # --- warm-up ---

    def _warm_up_step(self, batch: Batch) -> Tensor:
        """Cross-entropy of the pass's network, with a penalty on confident predictions (Eq. 2, section 3.1)."""
        logits = self.networks[batch.pass_index](batch.images)
        batch.record_logits(logits)
        cross_entropy = losses.cross_entropy(logits, batch.labels)
        if self.params.warm_up_penalty == 0.0:
            return cross_entropy
        return cross_entropy + self.params.warm_up_penalty * losses.negative_entropy(logits)

    def _cross_entropy_step(self, batch: Batch) -> Tensor:
        """In an epoch in which all labels count as clean, or none, a network trains on all of them."""
        logits = self.networks[batch.pass_index](batch.images)
        batch.record_logits(logits)
        return losses.cross_entropy(logits, batch.labels)

    # --- co-divide (Alg. 1, lines 4-8) ---

    def _co_divide(self, context: TrainContext) -> None:
        """Fit both mixtures before either network trains (lines 4-5)."""
        logits = context.score(lambda images: torch.stack([network(images) for network in self.networks], dim=1))
        for number in range(len(self.networks)):
            scaled = gaussian_mixture.scale_to_unit(losses.cross_entropies(logits[:, number], self.labels))
            self.losses[:, number] = torch.cat([self.losses[1:, number], scaled[None]])
            average = self.losses[:, number].nanmean(dim=0)
            self.clean_probability[number] = gaussian_mixture.clean_probability(average)

    def _passes(self) -> Sequence[Pass]:
        """Each network trains on the other one's division (lines 6-8)."""
        return [
            self._pass_over(self._clean_probability_for(number) > self.params.clean_threshold)
            for number in range(len(self.networks))
        ]

    def _clean_probability_for(self, pass_index: int) -> Tensor:
        return self.clean_probability[1 - pass_index]

    def _pass_over(self, clean: Tensor) -> Pass:
        """Clean images labelled, the others unlabelled; all of them labelled where there is only one kind."""
        if bool(clean.all()) or not bool(clean.any()):
            return Pass(torch.ones_like(clean))
        return Pass(clean, ~clean)

    # --- MixMatch (Alg. 1, lines 9-27) ---

    def _mixmatch_step(self, batch: Batch, unlabelled: Unlabelled, unlabelled_weight: float) -> Tensor:
        """The loss of one step; `unlabelled_weight` is λ_u."""
        # targets of every view
        targets = self._targets(batch, unlabelled)
        images = torch.cat([*batch.views, *unlabelled.views])

        # mix all rows with each other (Eq. 6)
        generator = batch.generator(mixup.MIXING)
        index = mixup.row_ids([batch.index] * len(batch.views) + [unlabelled.index] * len(unlabelled.views))
        share, partner = mixup.draw_mixing(self.params.alpha, index, generator, folded=True)
        logits = self.networks[batch.pass_index](mixup.mix(images, share, partner))

        # the loss (Eq. 9 and 10)
        labelled = len(batch.views) * len(batch.labels)
        loss = mixmatch.loss(logits, mixup.mix(targets, share, partner), labelled, unlabelled_weight)
        return loss + losses.prior_kl(logits)  # Eq. 11, with the paper's λ_r = 1

    @torch.no_grad()
    def _targets(self, batch: Batch, unlabelled: Unlabelled) -> Tensor:
        """Co-refined and co-guessed targets, a row for every image of every view.

        As in the released code, the network that trains predicts in training mode and view by view, the other one in
        eval mode.
        """
        own, other = self.networks[batch.pass_index], self.networks[1 - batch.pass_index]
        labelled_logits = [own(view) for view in batch.views]
        unlabelled_logits = [own(view) for view in unlabelled.views]
        batch.record_logits(labelled_logits[0])
        unlabelled.record_logits(unlabelled_logits[0])
        other.eval()
        unlabelled_logits += other(torch.cat(unlabelled.views)).chunk(len(unlabelled.views))
        other.train()

        # co-guessing by both networks (Alg. 1); Eq. 3: co-refinement by the other one's clean probability
        guessed = mixmatch.average_probabilities(unlabelled_logits)
        clean_probability = self._clean_probability_for(batch.pass_index)[batch.index]
        own_average = mixmatch.average_probabilities(labelled_logits)
        refined = mixmatch.co_refine(batch.labels, clean_probability, own_average)

        # Eq. 4: sharpening
        refined, guessed = (mixmatch.sharpen(rows, self.params.temperature) for rows in (refined, guessed))
        return torch.cat([refined.repeat(len(batch.views), 1), guessed.repeat(len(unlabelled.views), 1)])

    # --- prediction ---

    def logits(self, images: Tensor) -> Tensor:
        """Mean of both networks' logits (B, C): the order of the paper's sum, with the confidence of one network."""
        return self.heads(images)[ENSEMBLE]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """The ensemble's and each network's own logits, `g1` and `g2`, (B, C) each."""
        return two_networks.mean_logit_heads(*(network(images).float() for network in self.networks))
