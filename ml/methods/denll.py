"""Deconfounded Noisy Labels Learning: two networks, one of which sees every image with the classes' mean background.

It wraps any network and any base method (`host` in the API):

- A localization module splits an image into foreground f and background b (Eq. 5).
- g1 sees f and b; g2 sees f and b̄, the mean over classes of the average background of each class (Eq. 4).
- Both learn by the base method's loss. Two gates mix their predictions, and an agreement term pulls the predictions
  together (Eq. 6). As printed, Eq. 6 is the base method's loss on the two gated predictions alone: `loss: gated`.

What the paper leaves open is a parameter; the preset `paper` is the text as printed. docs/log.md has the results of
readings that were left out, such as random backgrounds for g2.

Phases are those of the base method, for both branches at once. The gates belong to the classifier: they are reset when
the base method reinitialises it, and frozen while it is frozen. The localization module belongs to the body: it is
frozen while the body is frozen, and never reinitialised.

With several phases agreement waits for the last one, and its weight is halved if it begins with clipped gradients. It
does not wait for a selection within a phase (CORES). In the last phases of DMI and T-revision, whose learning rates are
tiny, it has hardly any effect. In M-correction the two predictions that are pulled together are of different mixtures.

The gates learn from images with their given label. Where the base method has no pass over them alone, because it mixes
images or joins several views, they learn from a pass in evaluation mode, as the model predicts. A base method without
steps (`probe`) has none to teach them: they stay at 3/4.

Shapes: `B` batch, `C` classes, images `(B, 3, H, W)` normalised, logits `(B, C)`, features `(B, D)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ml import method, methods
from ml.blocks import branches, deconfounding, interaction, method_pair, mutual_learning, shared_parts, two_networks
from ml.features import evidence_state
from ml.method import ENSEMBLE, Batch, Network, NoiseEstimate, Phase, TrainContext, TrainHyperparameters
from ml.methods import About
from ml.networks import chain

CLIP = 5.0  # of the joint gradient norm
BY_EVIDENCE: dict[str, object] = {"agreement": "evidence", "answer": "evidence"}

ABOUT: About = {
    "title": "DeNLL",
    "paper": "Deconfounded Noisy Labels Learning (2022), sections 3.1-3.3, Eq. 4-6",
    "idea": "Wrong labels tie the background to the class. A localization module finds the object, and a second "
    "network sees it with the mean background of all classes, so that the background says nothing about the label.",
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
        "photographs": {"localization": "backbone", "host": "elr", "gates": "off", **BY_EVIDENCE},
        "photographs frozen": {"localization": "backbone", "host": "forward_probe", "gates": "off", **BY_EVIDENCE},
        "photographs whole": {
            "localization": "backbone",
            "host": "ce",
            "gates": "off",
            "agreement": "evidence",
            "answer": "mean",
        },
        "paper": {"split": "median", "fusion": "concat", "loss": "gated", "gates": "joint", "agreement": "off"},
    },
    "training": {
        "photographs": {"tune": "last", "epochs": 4},
        "photographs frozen": {"tune": "none", "epochs": 1},
        "photographs whole": {
            "tune": "all",
            "epochs": 4,
            "batch_norm": "pretrained",
            "learning_rate": 0.01,
            "layer_decay": 0.7,
        },
    },
    "frozen_backbone": {"localization": "backbone"},
    "rules": [{"preset": "confounded", "fact": "clutter", "below": 0.78}],
}


def _list_base_methods(schema: dict[str, Any]) -> None:
    """Base methods are all other methods; the list is made with the schema, not when this file is imported."""
    schema["enum"] = [name for name in methods.names() if name != "denll"]


class Params(deconfounding.DeconfoundingParams, interaction.InteractionParams):
    """The readings of the paper that can be selected."""

    host: str = Field(
        default="ce",
        description="The base method that trains each of the two networks.",
        json_schema_extra=_list_base_methods,
    )
    host_params: dict[str, Any] = Field(default={}, description="The base method's own parameters.")

    @model_validator(mode="after")
    def _base_method_must_accept_its_params(self) -> Params:
        if self.host == "denll":
            raise ValueError("host: DeNLL cannot host itself")
        methods.load(self.host).Params.model_validate(self.host_params)
        return self

    @model_validator(mode="after")
    def _evidence_is_read_from_a_backbone(self) -> Params:
        if self.uses_evidence and self.localization != "backbone":
            raise ValueError("evidence is read from the features of a backbone: it needs localization: backbone")
        return self


def renderings(params: Params) -> tuple[str, ...]:
    """What the method sees of every image, side by side, where a frozen backbone stands before it."""
    if params.localization != "backbone":
        return ("picture",)
    return ("picture", "centred" if params.lm == "fixed" else "composite")


class Method(method.Method):
    """Eq. 6: two base methods, one on g1(f, b) and one on g2(f, b̄), with gates and agreement between them."""

    labels: Tensor  # int64 (M,)

    former_state_names: ClassVar = {
        "core.bank.classes": "deconfounder.class_background.averages",
        "core.bank.known": "deconfounder.class_background.known",
        "core.unit.": "deconfounder.unit_range.",
        "core.": "deconfounder.",
        "host1.": "base1.",
        "host2.": "base2.",
        "gates.own.": "gates.linear.",
        "brake.": "damping.",
    }

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build both base methods on debiased branches; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.params = params

        # the first network also tells the shapes; it then becomes the first branch
        unused = [cast(chain.Chain, network())]
        feature_count, class_count = unused[0].feature_count, unused[0].class_count
        self.deconfounder = deconfounding.make_deconfounder(params, class_count, unused[0].image_size)
        self.recorders = (branches.ActivationRecorder(), branches.ActivationRecorder())

        # two base methods, which use the branches as ordinary networks
        base = methods.load(params.host)
        base_params = base.Params.model_validate(params.host_params)

        pairs = branches.GatedPairs(lambda: cast(deconfounding.Gates, self.gates))

        def branch(*, second: bool) -> Network:
            inner = unused.pop() if unused else cast(chain.Chain, network())
            one = branches.make_branch(inner, self.deconfounder, self.recorders[second], second=second)
            if params.loss == "gated":
                pairs.add(one, second=second)
            return one

        self.base1 = base.Method(base_params, labels, lambda: branch(second=False))
        self.base2 = base.Method(base_params, labels, lambda: branch(second=True))
        self.gates = None if params.gates == "off" else deconfounding.Gates(2 * feature_count)
        self.damping = mutual_learning.AgreementDamping()
        self.evidence = evidence_state.make(params, len(labels), class_count)
        self.register_buffer("labels", labels, persistent=False)

    # --- phases ---

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """The base method's own phases, for both branches at once.

        Agreement waits for the last one: it slows the fitting by which base methods select samples, and makes a
        training collapse whose layers have just been reinitialised.
        """
        pairs = [
            method_pair.PhasePair(first, second, apart=self._are_apart)
            for first, second in zip(self.base1.phases(training), self.base2.phases(training), strict=True)
        ]
        last_begins = sum(pair.first.epochs for pair in pairs[:-1])
        epochs = last_begins + pairs[-1].first.epochs

        def agreement_weight(epoch: int) -> float:
            return mutual_learning.agreement_weight(self.params, epoch - last_begins, epochs - last_begins)

        # the epoch in which agreement begins is watched, on a base method with several phases
        watched = next((epoch for epoch in range(epochs) if agreement_weight(epoch) > 0.0), epochs)
        return [self._phase(pair, training, agreement_weight, watched if last_begins else None) for pair in pairs]

    @property
    def _are_apart(self) -> bool:
        """Whether no part of the method belongs to both base methods' losses, so that these may run side by side."""
        return self.params.loss == "each" and not self.deconfounder.changes_first

    def _phase(
        self,
        pair: method_pair.PhasePair,
        training: TrainHyperparameters,
        agreement_weight: Callable[[int], float],
        watched_epoch: int | None,
    ) -> Phase:
        """One phase of both base methods; `watched_epoch` is the one in which agreement begins, or None."""

        # labels are ranked by g1, or by g2 where it answers alone or is not affected by agreement; by neither where
        # the evidence has ranked them
        by_second = self.params.agreement == "one_way" or self.params.answer == "g2"

        def is_watched(epoch: int) -> bool:
            return epoch == watched_epoch

        # each step: both base methods' losses L(g1, y') + L(g2, y'), then the rest of Eq. 6
        def loss(batch: Batch) -> Tensor:
            batch = batch if self.evidence is None else batch.without_recording()
            with self.deconfounder.step(batch), self.recorders[0].recording(), self.recorders[1].recording():
                base_losses = pair.losses(batch, record_second=by_second)
                weight, watched = batch.of_epoch(agreement_weight), batch.of_epoch(is_watched)
                return base_losses + self.interaction_loss(batch, weight, watched=watched)

        def before_step(batch: Batch) -> None:
            pair.before_step(batch)
            if batch.of_epoch(is_watched):
                self.damping.record_gradients(self.parameters(), CLIP)

        # before each epoch: damping after the watched one; images that the evidence draws; labels ranked by probes
        def begin_epoch(context: TrainContext) -> None:
            if watched_epoch is not None and context.epoch == watched_epoch + 1:
                self.damping.update_factor()
            logits = pair.begin_epoch(context)
            ranking = logits[by_second]
            if self.evidence is not None:
                ranking = self.evidence.update(context, self.base1, self.base2, self.labels, logits)
            if ranking is not None:
                context.record_logits(ranking)

        return replace(
            pair.first,
            loss=loss,
            optimizers=pair.optimizers(lambda: shared_parts.optimizers(self.deconfounder, self.gates, training)),
            before_step=before_step,
            after_step=pair.after_step,
            enter=lambda context: shared_parts.enter_phase(self, pair, self.deconfounder, self.gates, context),
            begin_epoch=begin_epoch,
            passes=pair.passes if self.evidence is None else self.evidence.restricted(pair.passes),
            clip=CLIP,
        )

    # --- one step ---

    def interaction_loss(self, batch: Batch, agreement_weight: float, *, watched: bool = False) -> Tensor:
        """The rest of Eq. 6 with λ = `agreement_weight`, CE(o1, y') + CE(o2, y') + λ · agreement, and the mask's
        label-free loss, if it has one."""
        label_free = self.deconfounder.label_free_loss(batch.images)
        total = torch.zeros((), device=batch.images.device) if label_free is None else label_free
        passes = list(zip(self.recorders[0].records, self.recorders[1].records, strict=False))

        # agreement, on passes with a gradient: not on a base method's guesses or scores
        if agreement_weight > 0.0:
            trained = [pair for pair in passes if all(own.logits.requires_grad for own in pair)]
            agreement = self.damping.agreement_loss(self.params.agreement, trained, watched=watched)
            total = total + agreement_weight * agreement

        # gates, on images that the base method has not mixed: its mixtures have other targets
        if self.gates is not None and self.params.loss == "each":
            unmixed = [pair for pair in passes if any(pair[0].images is view for view in batch.views)]
            seen = unmixed or [self._evaluated(batch.images)]
            total = total + self.gates.loss(seen, batch, detached=self.params.gates == "detached")
        return total

    def _evaluated(self, images: Tensor) -> tuple[deconfounding.Activations, deconfounding.Activations]:
        """Both predictions in evaluation mode, so that no running statistics move; the mode is training again then."""
        self.eval()
        with torch.set_grad_enabled(self.params.gates == "joint" and torch.is_grad_enabled()):
            pair = self._predict(images)
        self.train()
        return pair

    # --- prediction ---

    def logits(self, images: Tensor) -> Tensor:
        """The prediction that the parameter `answer` selects, (B, C); it needs no labels."""
        return self.heads(images)[ENSEMBLE]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, C) of `g1`, `g2`, `mean` and the ensemble, which is one of them.

        `mean` is the logarithm of the mean probabilities of o1 and o2, of g1 and g2 without gates. With `loss: gated`
        o1 and o2 are what is called `g1` and `g2`.
        """
        one, two = self._predict(images)
        l1, l2 = one.logits, two.logits
        pair = (l1, l2)
        if self.gates is not None and self.params.loss == "each":
            pair = self.gates(one, two)
        heads = {"g1": l1, "g2": l2, "mean": two_networks.mean_probability_logits(pair)}
        if self.evidence is not None:
            heads["evidence"] = self.evidence.answer(l1, l2)
        return {ENSEMBLE: heads[self.params.answer], **heads}

    def _predict(self, images: Tensor) -> tuple[deconfounding.Activations, deconfounding.Activations]:
        """Both base methods' predictions, each with the features of its first network."""
        with self.recorders[0].recording(), self.recorders[1].recording():
            l1, l2 = self.base1.logits(images).float(), self.base2.logits(images).float()
            one, two = self.recorders[0].records[0], self.recorders[1].records[0]
        return one._replace(logits=l1), two._replace(logits=l2)

    def locate(self, images: Tensor) -> Tensor | None:
        """Centre x, centre y and sigma of each image's mask, in network pixels, (B, 3); None without a module."""
        return None if self.deconfounder.localization is None else self.deconfounder.localization(images)

    def noise_estimate(self) -> NoiseEstimate | None:
        """See `ml.method.Method.noise_estimate`; known where the evidence ranks labels by classes."""
        return None if self.evidence is None else self.evidence.noise_estimate()

    def findings(self) -> dict[str, Any]:
        """Whether labels follow the background, who answers, and why (`EvidenceState.findings`)."""
        return {} if self.evidence is None else self.evidence.findings(self.params.answer)
