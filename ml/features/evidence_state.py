"""The evidence of a data set as part of DeNLL's state: a checkpoint and a model archive hold it.

It is gathered once, before the first step, from the features that both branches have then: those of the pretrained
backbone. Nothing that is trained later changes it.

Shapes: `M` images trained on, `B` batch, `C` classes, `D` features; logits (B, C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ml.blocks import branches, pool_union
from ml.blocks.branches import DebiasedBranch
from ml.blocks.interaction import InteractionParams
from ml.features import answer_rule, label_evidence, pair_evidence
from ml.features.answer_rule import AnswerDecision, BackgroundStatistic
from ml.features.pair_evidence import PairEvidence
from ml.method import Method, NoiseEstimate, Pass, TrainContext

DRAWS, SAMPLES = "evidence", "evidence/samples"  # the concerns of generators: folds and images; bootstrap samples
LATER_BUFFERS = ("transition", "noise_rate")  # which states of an earlier version lack


class EvidenceState(nn.Module):
    """Who answers, what each label speaks of, and the images of the epoch that are drawn by it."""

    is_gathered: Tensor  # bool ()
    statistic: Tensor  # f64 (2,): L and its deviation by chance
    answer_weights: Tensor  # f64 (2,): of log p1 and log p2
    shares: Tensor  # f64 (3,): of labels that speak of the object, of the background, of neither
    object_weight: Tensor  # f32 (M,)
    drawn: Tensor  # bool (M,): the images of this epoch
    transition: Tensor  # f64 (C, C): T of the labels
    noise_rate: Tensor  # f64 (3,): share of wrong labels and the ends of its interval; NaN where T is not known

    def __init__(self, image_count: int, classes: int, *, exchange: bool) -> None:
        """Start with both networks answering alike, and all labels trusted.

        Args:
            image_count: M.
            classes: C.
            exchange: images count by what their labels speak of: by draws in steps; probes are solved for once more,
                with weights, where labels follow the background.
        """
        super().__init__()
        self.exchange = exchange
        self.register_buffer("is_gathered", torch.tensor(False))
        self.register_buffer("statistic", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("answer_weights", torch.full((2,), 0.5, dtype=torch.float64))
        self.register_buffer("shares", torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
        self.register_buffer("object_weight", torch.ones(image_count))
        self.register_buffer("drawn", torch.ones(image_count, dtype=torch.bool))
        self.register_buffer("transition", torch.eye(classes, dtype=torch.float64))
        self.register_buffer("noise_rate", torch.full((3,), torch.nan, dtype=torch.float64))
        self.register_load_state_dict_pre_hook(_complete_former_state)  # type: ignore[no-untyped-call]

    @property
    def decision(self) -> AnswerDecision:
        """Who answers, and why."""
        excess, deviation = self.statistic.tolist()
        first, second = self.answer_weights.tolist()
        statistic = BackgroundStatistic(excess, deviation)
        return AnswerDecision(statistic, "g2" if statistic.labels_follow_background else "stack", (first, second))

    def update(
        self,
        context: TrainContext,
        base1: Method,
        base2: Method,
        labels: Tensor,
        recorded: tuple[Tensor | None, Tensor | None],
    ) -> Tensor | None:
        """Before an epoch: gather the evidence if it is the first one, and draw the epoch's images by it.

        Args:
            context: of the training, whose method's input has composites.
            base1: trains g1; of several networks the first counts.
            base2: trains g2.
            labels: given labels int64 (M,).
            recorded: out-of-fold logits of clean classes by g1 and g2, (M, C) each, if both are probes that have just
                been solved for; None if they are trained in steps.

        Returns:
            The logits (M, C) by which labels are ranked, before the first epoch; None before the others.
        """
        one, two = recorded
        first, second = (branches.find_branches(base)[0] for base in (base1, base2))
        probes = None if one is None or two is None else (one.log_softmax(dim=1), two.log_softmax(dim=1))
        logits = None
        if not bool(self.is_gathered):
            gathered = self._gather(context, first, second, labels, probes)
            logits = gathered.log_probabilities
            if self.exchange and probes is not None and gathered.decision.predictor == "g2":
                generator, weights = context.generator(DRAWS), self.object_weight
                for branch in (first, second):
                    features = context.score(branch.features)
                    pair_evidence.fold_weighted_probe(branch.classifier, features, labels, weights, generator)
        if self.exchange:
            self.drawn.zero_()
            self.drawn[label_evidence.draw(self.object_weight, context.generator(DRAWS))] = True
        return logits

    def _gather(
        self,
        context: TrainContext,
        first: DebiasedBranch,
        second: DebiasedBranch,
        labels: Tensor,
        probes: tuple[Tensor, Tensor] | None,
    ) -> PairEvidence:
        gathered = pair_evidence.gather(
            context.score(first.features),
            context.score(second.features),
            _encode(second, context.rendered("background")),
            labels,
            first.class_count,
            context.generator(DRAWS),
            context.generator(SAMPLES),
            probes,
        )
        statistic = gathered.decision.statistic
        self.statistic.copy_(torch.tensor([statistic.excess, statistic.deviation]))
        self.answer_weights.copy_(torch.tensor(gathered.decision.weights))
        self.shares.copy_(torch.tensor(gathered.evidence.shares))
        self.object_weight.copy_(gathered.evidence.object_weight)
        if (noise := gathered.noise) is not None:
            self.transition.copy_(noise.transition)
            self.noise_rate.copy_(torch.tensor([noise.noise_rate, *noise.interval]))
        self.is_gathered.fill_(True)
        return gathered

    def restricted(self, passes: Callable[[], Sequence[Pass]] | None) -> Callable[[], Sequence[Pass]] | None:
        """Passes (`Phase.passes`) with the labelled images that are drawn; a pass left empty stays whole."""
        if not self.exchange:
            return passes
        return lambda: [self._restrict(one) for one in (passes() if passes else [Pass(torch.ones_like(self.drawn))])]

    def _restrict(self, one: Pass) -> Pass:
        positions = pool_union.pool_positions(one.pool)
        drawn = positions[self.drawn[positions]]
        return replace(one, pool=drawn) if len(drawn) else one

    def answer(self, first: Tensor, second: Tensor) -> Tensor:
        """Log-probabilities (B, C) of logits of g1 and g2."""
        weight_first, weight_second = self.answer_weights.float()
        return answer_rule.combine(first, second, weight_first, weight_second)

    def noise_estimate(self) -> NoiseEstimate | None:
        """How clean classes were mistaken; None before it is known, and where labels follow the background."""
        rate, low, high = self.noise_rate.tolist()
        return None if math.isnan(rate) else NoiseEstimate(self.transition.cpu(), rate, (low, high))

    def findings(self, answer: str = "evidence") -> dict[str, Any]:
        """In words and numbers, for the user; empty before anything is gathered.

        Args:
            answer: the prediction that is the model's (`InteractionParams.answer`); "evidence" is the decision's.
        """
        if not bool(self.is_gathered):
            return {}
        decision = self.decision
        of_object, of_background, of_neither = self.shares.tolist()
        return {
            "labels_follow_background": decision.statistic.labels_follow_background,
            "background_statistic": decision.statistic.excess,
            "background_statistic_deviation": decision.statistic.deviation,
            "answer": decision.predictor if answer == "evidence" else answer,
            "answer_reason": decision.reason if answer == "evidence" else decision.statistic.finding,
            "labels_of_object": of_object,
            "labels_of_background": of_background,
            "labels_of_neither": of_neither,
        }


def make(params: InteractionParams, image_count: int, classes: int) -> EvidenceState | None:
    """The state that the params need for M images of C classes; None if nothing is decided by evidence."""
    if not params.uses_evidence:
        return None
    return EvidenceState(image_count, classes, exchange=params.agreement == "evidence")


def _complete_former_state(module: EvidenceState, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Before `state` is loaded: what an earlier version did not know of the labels is not known, in place."""
    for name in LATER_BUFFERS:
        state.setdefault(prefix + name, getattr(module, name))


@torch.no_grad()
def _encode(branch: DebiasedBranch, batches: Iterable[Tensor]) -> Tensor:
    """Features (M, D) of inputs that are not side by side, by the branch's network in evaluation mode."""
    was_training = branch.training
    branch.eval()
    parts = [branch.last_stage(branch.body(rows)) for rows in batches]
    branch.train(was_training)
    return torch.cat(parts)
