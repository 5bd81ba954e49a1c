"""DivideMix: two networks, each of which tells the other whose labels to trust; the rest is learned without its label.

Li, Socher, Hoi, ICLR 2020, Algorithm 1. After a warm-up every epoch fits a mixture of two Gaussians to each network's
losses. Then the networks are trained in turn, each by MixMatch on what the other's mixture calls clean (labelled,
targets co-refined) and noisy (unlabelled, targets co-guessed).

Epochs are the spec's, so are batch size, learning rate and schedule; the paper's are 300, 128 (64 labelled, 64 not),
0.02 and one drop at half. Warm-up and ramp are shares of the epochs. Left out: Clothing1M's balanced subset per epoch.

Shapes: `B` labelled and `B'` unlabelled images of a step, `M` training images, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ml import method
from ml.blocks import gaussian_mixture, losses, mixmatch, mixup, schedules
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

MIXING = "mixing"  # the concern of λ and of the permutation
WARM_UP = 1 / 30  # 10 of 300 epochs on CIFAR-10
CIFAR_100 = {"warm_up": 0.1}  # 30 of 300

ABOUT: About = {
    "title": "DivideMix",
    "paper": "Li, Socher, Hoi: DivideMix: Learning with Noisy Labels as Semi-supervised Learning (ICLR 2020)",
    "idea": "Wrong labels are learned late. Each of two networks divides the set by its losses for the other, which "
    "learns the suspicious images without their labels.",
    "relative_cost": 8.0,  # steps follow the trusted images: 10 at 20 % noise, 7 at half; measured 5.9 to 7.9
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
}


class Params(MethodParams):
    """The settings of DivideMix."""

    warm_up: float = Field(
        default=WARM_UP,
        ge=0.0,
        le=1.0,
        description="Share of the epochs that train plainly on all labels before the first division; at least one.",
    )
    warm_up_penalty: float = Field(
        default=0.0,
        ge=0.0,
        le=10.0,
        description="Weight of the negative entropy in the warm-up: 1 for asymmetric noise, where networks get sure of "
        "wrong labels too soon to be divided by their losses.",
    )
    clean_threshold: float = Field(
        default=0.5, ge=0.0, lt=1.0, description="A label is trusted above this probability of being clean."
    )
    averaged_epochs: int = Field(
        default=1,
        ge=1,
        le=20,
        description="The division looks at losses averaged over so many epochs; 5 at 90 % noise.",
    )
    temperature: float = Field(
        default=0.5, ge=0.05, le=1.0, description="Sharpening of the guessed and refined targets; 1 leaves them."
    )
    alpha: float = Field(
        default=4.0, gt=0.0, le=100.0, description="Of the Beta distribution by which images are mixed; large is half."
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
        super().__init__(params, labels, network)
        self.params = params
        self.networks = nn.ModuleList([network(), network()])
        self.register_buffer("labels", labels, persistent=False)
        # what the division averages: the newest last, NaN before there were so many
        self.register_buffer("losses", torch.full((params.averaged_epochs, 2, len(labels)), torch.nan))
        self.register_buffer("clean_probability", torch.ones(2, len(labels)))  # by each network's own mixture

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Warm-up, then MixMatch; the optimizers and their schedule go on."""
        warm_up = min(training.epochs, max(1, round(self.params.warm_up * training.epochs)))

        def optimizers() -> Optimizers:
            return Optimizers(tuple(training.sgd(network.parameters()) for network in self.networks), training.factor)

        def mixmatch_loss(batch: Batch) -> Tensor:
            if batch.unlabelled is None:
                return self._plain(batch)
            since = batch.progress * training.epochs - warm_up
            ramp = schedules.linear_ramp(since, self.params.ramp * training.epochs)
            return self._mixmatch(batch, batch.unlabelled, self.params.unlabelled_weight * ramp)

        every = torch.arange(len(self.labels))
        plain = Phase(warm_up, self._warm_up, optimizers, passes=lambda: [Pass(every), Pass(every)], name="warm-up")
        if warm_up == training.epochs:
            return [plain]
        rest = training.epochs - warm_up
        return [
            plain,
            Phase(
                rest,
                mixmatch_loss,
                None,
                begin_epoch=self._divide,
                passes=self._passes,
                views=("weak", "weak"),
                name="mixmatch",
            ),
        ]

    def _warm_up(self, batch: Batch) -> Tensor:
        """Cross-entropy of the network that this pass trains, with a penalty on being sure (Eq. 2, section 3.1)."""
        logits = self.networks[batch.pass_index](batch.images)
        batch.record_logits(logits)
        plain = losses.cross_entropy(logits, batch.labels)
        if self.params.warm_up_penalty == 0.0:
            return plain
        return plain + self.params.warm_up_penalty * losses.negative_entropy(logits)

    def _plain(self, batch: Batch) -> Tensor:
        """An epoch in which all labels are trusted, or none, trains on all of them."""
        logits = self.networks[batch.pass_index](batch.images)
        batch.record_logits(logits)
        return losses.cross_entropy(logits, batch.labels)

    def _divide(self, lab: TrainContext) -> None:
        """Co-divide (Alg. 1, lines 4-5): both mixtures before either network trains."""
        answers = lab.score(lambda images: torch.stack([network(images) for network in self.networks], dim=1))
        for number in range(len(self.networks)):
            scaled = gaussian_mixture.scale_to_unit(losses.cross_entropies(answers[:, number], self.labels))
            self.losses[:, number] = torch.cat([self.losses[1:, number], scaled[None]])
            average = self.losses[:, number].nanmean(dim=0)
            self.clean_probability[number] = gaussian_mixture.clean_probability(average)

    def _passes(self) -> Sequence[Pass]:
        """Each network trains on what the other one trusts (Alg. 1, lines 6-8)."""
        return [
            self._pass(self._trust(pass_index) > self.params.clean_threshold)
            for pass_index in range(len(self.networks))
        ]

    def _trust(self, pass_index: int) -> Tensor:
        return self.clean_probability[1 - pass_index]

    def _pass(self, trusted: Tensor) -> Pass:
        if bool(trusted.all()) or not bool(trusted.any()):
            return Pass(torch.ones_like(trusted))
        return Pass(trusted, ~trusted)

    def _mixmatch(self, batch: Batch, unlabelled: Unlabelled, weight: float) -> Tensor:
        """One step of Algorithm 1, lines 9-27; `weight` is λ_u."""
        targets = self._targets(batch, unlabelled)
        images = torch.cat([*batch.views, *unlabelled.views])
        generator = batch.generator(MIXING)
        share = mixup.fold_lambda(mixup.draw_lambda(self.params.alpha, generator))
        index = mixup.row_ids([batch.index] * len(batch.views) + [unlabelled.index] * len(unlabelled.views))
        partner = mixup.draw_partners(index, generator)
        logits = self.networks[batch.pass_index](mixup.mix(images, share, partner))
        labelled = len(batch.views) * len(batch.labels)
        loss = mixmatch.loss(logits, mixup.mix(targets, share, partner), labelled, weight)
        return loss + losses.prior_kl(logits)  # Eq. 11, with the paper's λ_r = 1

    @torch.no_grad()
    def _targets(self, batch: Batch, unlabelled: Unlabelled) -> Tensor:
        """Co-refined and co-guessed targets, a row for every image of every view.

        The network of this pass answers as it trains, by the batch's statistics and view by view, the other one as
        it is tested: what the released code does.
        """
        own, other = self.networks[batch.pass_index], self.networks[1 - batch.pass_index]
        seen = [own(view) for view in batch.views]
        guesses = [own(view) for view in unlabelled.views]
        batch.record_logits(seen[0])
        unlabelled.record_logits(guesses[0])
        other.eval()
        guesses += other(torch.cat(unlabelled.views)).chunk(len(unlabelled.views))
        other.train()
        guessed = mixmatch.average_probabilities(guesses)
        trust = self._trust(batch.pass_index)[batch.index]
        refined = mixmatch.co_refine(batch.labels, trust, mixmatch.average_probabilities(seen))
        temperature = self.params.temperature
        rows = [mixmatch.sharpen(each, temperature) for each in (refined, guessed)]
        return torch.cat([rows[0].repeat(len(batch.views), 1), rows[1].repeat(len(unlabelled.views), 1)])

    def logits(self, images: Tensor) -> Tensor:
        """The mean of both networks' logits: the order of the paper's sum, at a single network's confidence."""
        return self.heads(images)[ENSEMBLE]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """`answer`, and each network's own logits, `g1` and `g2`."""
        one, two = (network(images).float() for network in self.networks)
        return {ENSEMBLE: 0.5 * (one + two), "g1": one, "g2": two}
