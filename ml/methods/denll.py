"""Deconfounded Noisy Labels Learning: two networks, one of which sees every image before the classes' mean background.

Wraps any network and any host method. A localization module splits an image into foreground f and background b
(Eq. 5); g1 sees f and b, g2 sees f and b̄, the uniform mean over classes of the background (Eq. 4); both learn as the
host says and exchange what they know (Eq. 6). What the paper leaves open is a setting; preset `paper` is its letter.
Readings that were tried and left out, such as random backgrounds for g2, stand in docs/log.md with their figures.

On a host that renews or freezes parts of its networks, both branches' parts of that name are meant. The gates belong to
the classifier: they are reset when it is renewed, rest as long as it is frozen, and learn along with it. The
localization module belongs to the body: it rests as long as that is frozen, and is never renewed. On a host of several
phases the exchange waits for the last; if that begins badly, its weight is halved. It waits for no selection within a
phase (CORES), and behind the last phases of DMI and T-revision, whose rates are tiny, it hardly moves anything. Where a
host mixes by what it trusts (M-correction), the two answers pulled together are to different mixtures.

Gates learn from images that keep their given label, where a host shows them unmixed and by themselves; the targets of
mixed ones are the host's own, and it tells nobody. One pass over several views (SOP+, CORES* once it has sieved)
teaches them nothing.

Shapes: `B` batch, `C` classes, images `(B, 3, H, W)` normalised, logits `(B, C)`, features `(B, D)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ml import method, methods
from ml.blocks import deconfounding, losses, mutual_learning, pool_union, replay_rng
from ml.method import ENSEMBLE, Batch, Network, Optimizers, Phase, TrainContext, TrainHyperparameters
from ml.methods import About
from ml.networks import chain

CLIP = 5.0  # of the joint gradient norm

ABOUT: About = {
    "title": "DeNLL",
    "paper": "Deconfounded Noisy Labels Learning (2022), sections 3.1-3.3, Eq. 4-6",
    "idea": "Wrong labels tie the background to the class. A localization module is to find the object, and a second "
    "network sees what it points at before the mean background of all classes, so that the background says nothing "
    "about the label.",
    "relative_cost": 2.2,
    "needs": [],
    "presets": {
        "default": {},
        "confounded": {
            "localization": "label_free",
            "centre": "soft_argmax",
            "sigma": "fixed",
            "sigma_fraction": 0.11,
            "lm_learning_rate": 1.0,
            "bank_kept": 0.99,
            "agreement": "one_way",
            "answer": "g2",
        },
        "paper": {"split": "median", "fusion": "concat", "gates": "joint", "agreement": "off"},
    },
    "rules": [{"preset": "confounded", "fact": "clutter", "below": 0.78}],
}


def _offer_hosts(schema: dict[str, Any]) -> None:
    """Hosts are the other methods, known when the schema is asked for, not when this file is imported."""
    schema["enum"] = [name for name in methods.names() if name != "denll"]


class Params(deconfounding.DeconfoundingParams, mutual_learning.AgreementParams):
    """The readings of the paper that stay selectable."""

    host: str = Field(
        default="ce", description="The method each of the two networks follows.", json_schema_extra=_offer_hosts
    )
    host_params: dict[str, Any] = Field(default={}, description="The host's own settings.")
    gates: Literal["detached", "joint", "off"] = Field(
        default="detached",
        description="Learned mixing of the two answers. detached: only the gates learn from it; joint: the networks as "
        "well.",
    )
    agreement: Literal["off", "both", "one_way"] = Field(
        default="both",
        description="both: the two networks are pulled together, which repairs random wrong labels; one_way: the first "
        "learns from the second, for labels that are wrong systematically.",
    )
    answer: Literal["mean", "g1", "g2"] = Field(default="mean", description="Whose answer is the model's.")

    @model_validator(mode="after")
    def _host_must_know_its_params(self) -> Params:
        if self.host == "denll":
            raise ValueError("host: DeNLL cannot host itself")
        methods.load(self.host).Params.model_validate(self.host_params)
        return self


class Method(method.Method):
    """Eq. 6: two hosts, one on g1(f, b) and one on g2(f, b̄), with gates and agreement between them."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.params = params
        unused = [cast(chain.Chain, network())]  # the first also tells the shapes
        self.core = deconfounding.Deconfounder(params, unused[0].class_count, unused[0].image_size)
        self.tapes = (deconfounding.ActivationRecorder(), deconfounding.ActivationRecorder())
        host = methods.load(params.host)
        settings = host.Params.model_validate(params.host_params)
        width = 0
        made = []
        for second in (False, True):

            def fresh(second: bool = second) -> Network:
                nonlocal width
                plain = unused.pop() if unused else cast(chain.Chain, network())
                member = deconfounding.make_branch(plain, self.core, self.tapes[second], second)
                width = member.feature_count
                return member

            made.append(host.Method(settings, labels, fresh))
        self.host1, self.host2 = made
        self.gates = None if params.gates == "off" else deconfounding.Gates(2 * width)
        self.brake = mutual_learning.AgreementDamping()

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """The host's own phases, for both branches at once. Agreement waits for the last: it slows the fitting by which
        hosts select, and collapses a training whose layers have just been renewed."""
        pairs = list(zip(self.host1.phases(training), self.host2.phases(training), strict=True))
        last_begins = sum(first.epochs for first, _ in pairs[:-1])
        epochs = last_begins + pairs[-1][0].epochs

        def strength(epoch: int) -> float:
            waited = epoch - last_begins
            return 0.0 if waited < 0 else mutual_learning.agreement_weight(self.params, waited, epochs - last_begins)

        begun = next((epoch for epoch in range(epochs) if strength(epoch) > 0.0), epochs) if last_begins else None
        return [self._paired(first, second, training, strength, begun) for first, second in pairs]

    def _paired(
        self,
        first: Phase,
        second: Phase,
        training: TrainHyperparameters,
        strength: Callable[[int], float],
        begun: int | None,
    ) -> Phase:
        """`begun` is the epoch in which the exchange begins, on a host with several phases."""

        def both(batch: Batch, one: Callable[[Batch], Tensor], two: Callable[[Batch], Tensor]) -> Tensor:
            """The hosts' losses; labels are ranked by g1, or by a g2 that no agreement touches."""
            one_way = self.params.agreement == "one_way"
            unrecorded = batch.without_recording()
            own, other = replay_rng.run_with_same_draws(
                batch.generator,
                lambda generator: one(replace(unrecorded if one_way else batch, generator=generator)),
                lambda generator: two(replace(batch if one_way else unrecorded, generator=generator)),
            )
            return own + other

        def loss(batch: Batch) -> Tensor:
            with self._hearing(batch):
                found = both(batch, first.loss, second.loss)
                return found + self._exchange(batch, strength(batch.epoch), watched=batch.epoch == begun)

        def each(*hooks: Callable[[Batch], None]) -> Callable[[Batch], None]:
            def run(batch: Batch) -> None:
                for hook in hooks:
                    hook(batch)

            return run

        def watch(batch: Batch) -> None:
            if batch.epoch == begun:
                self.brake.watch_gradients(self.parameters(), CLIP)

        def begin_epoch(lab: TrainContext) -> None:
            if begun is not None and lab.epoch == begun + 1:
                self.brake.decide()
            replay_rng.run_hooks_with_same_draws(lab, first.begin_epoch, second.begin_epoch)

        shown = [member.passes for member in (first, second) if member.passes is not None]
        builders = [member.optimizers for member in (first, second) if member.optimizers is not None]
        return replace(
            first,
            loss=loss,
            optimizers=(lambda: self._optimizers(builders, training)) if builders else None,
            before_step=each(first.before_step, second.before_step, watch),
            after_step=each(first.after_step, second.after_step),
            enter=lambda lab: self._enter(lab, first, second),
            begin_epoch=begin_epoch,
            passes=(lambda: pool_union.unite_passes(*(show() for show in shown))) if shown else None,
            clip=CLIP,
        )

    def _enter(self, lab: TrainContext, first: Phase, second: Phase) -> None:
        """Both hosts' own beginning, which DeNLL's own parts follow."""
        members = deconfounding.find_branches(self)
        before = [member.classifier.weight.detach().clone() for member in members]
        replay_rng.run_hooks_with_same_draws(lab, first.enter, second.enter)
        after = [member.classifier.weight for member in members]
        if self.gates is not None:
            if not all(map(torch.equal, before, after)):
                self.gates.reset()
            self.gates.requires_grad_(any(member.classifier.weight.requires_grad for member in members))
        if self.core.localization is not None:
            learning = any(p.requires_grad for member in members for p in member.body.parameters())
            self.core.localization.requires_grad_(learning)

    def _optimizers(self, hosts: Sequence[Callable[[], Optimizers]], training: TrainHyperparameters) -> Optimizers:
        """Both hosts' own, and SGD without weight decay for what is DeNLL's: the localization module and the gates."""
        one, two = (build() for build in hosts)
        ours = []
        if self.core.localization is not None:
            scale = self.params.lm_learning_rate
            ours.append(training.sgd(self.core.localization.parameters(), scale=scale, weight_decay=0.0))
        if self.gates is not None:
            ours.append(training.sgd(self.gates.parameters(), weight_decay=0.0))
        return Optimizers((*one.members, *two.members, *ours), one.factor, (*one.constant_rate, *two.constant_rate))

    @contextmanager
    def _hearing(self, batch: Batch) -> Iterator[None]:
        """A step during which the images are split once and the branches' answers are recorded."""
        self.core.begin(batch)
        try:
            with self.tapes[0].listening(), self.tapes[1].listening():
                yield
        finally:
            self.core.end()

    def _exchange(self, batch: Batch, strength: float, *, watched: bool = False) -> Tensor:
        """Eq. 6 beyond the hosts' own losses: CE(o1, y') + CE(o2, y') + λ · agreement, and what trains the LM alone."""
        rest = self.core.label_free_loss(batch.images)
        total = torch.zeros((), device=batch.images.device) if rest is None else rest
        for one, two in zip(self.tapes[0].records, self.tapes[1].records, strict=False):
            learned = one.logits.requires_grad and two.logits.requires_grad  # neither a host's guess nor its score
            if strength > 0.0 and learned:
                term = mutual_learning.agreement_loss(self.params.agreement, one.logits, two.logits)
                total = total + strength * self.brake.factor * term
                if watched:
                    self.brake.watch(term)
            as_they_are = any(one.images is view for view in batch.views)  # mixed images have other labels
            if self.gates is not None and as_they_are:
                for gated in self.gates(one, two, detached=self.params.gates == "detached"):
                    total = total + losses.cross_entropy(gated, batch.labels)
        return total

    def logits(self, images: Tensor) -> Tensor:
        """The answer chosen by `answer`; without labels, as in training."""
        return self.heads(images)[ENSEMBLE]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """`g1`, `g2`, and `mean`: the logarithm of the mean probabilities of o1 and o2 (of g1 and g2 without gates)."""
        with self.tapes[0].listening(), self.tapes[1].listening():
            l1, l2 = self.host1.logits(images).float(), self.host2.logits(images).float()
            one, two = self.tapes[0].records[0], self.tapes[1].records[0]
        pair = (l1, l2)
        if self.gates is not None:
            pair = self.gates(one._replace(logits=l1), two._replace(logits=l2))
        mean = (0.5 * (pair[0].softmax(dim=1) + pair[1].softmax(dim=1))).clamp_min(1e-30).log()
        heads = {"g1": l1, "g2": l2, "mean": mean}
        return {ENSEMBLE: heads[self.params.answer], **heads}

    def locate(self, images: Tensor) -> Tensor | None:
        """Centre x, centre y and sigma of each image's mask, in network pixels (B, 3)."""
        return None if self.core.localization is None else self.core.localization(images)
