"""The evidence of a pair: gathered from features and noisy labels, kept as state, and used for answers and draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml.evaluation import measure, ranking
from ml.features import evidence_state, pair_evidence
from ml.method import NoiseEstimate, Pass

CLASSES, COUNT, WIDTH = 5, 500, 12


def features_of(classes: Tensor, seed: int, certainty: float = 3.0) -> Tensor:
    """Features (n, WIDTH) from which `classes` (n,) can be read linearly."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(classes), WIDTH, generator=random)
    noise[:, :CLASSES] += certainty * functional.one_hot(classes, CLASSES)
    return noise


def world(*, confounded: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Features of pictures, composites and backgrounds; clean and given labels, of which four in ten are redrawn."""
    random = torch.Generator().manual_seed(0)
    clean = torch.arange(COUNT) % CLASSES
    scene = torch.randint(CLASSES, (COUNT,), generator=random)
    other = scene if confounded else torch.randint(CLASSES, (COUNT,), generator=random)
    labels = torch.where(torch.rand(COUNT, generator=random) < 0.4, other, clean)
    picture = torch.cat([features_of(clean, 1), features_of(scene, 2)], dim=1)
    composite = torch.cat([features_of(clean, 1), torch.zeros(COUNT, WIDTH)], dim=1)
    background = torch.cat([torch.zeros(COUNT, WIDTH), features_of(scene, 2)], dim=1)
    return picture, composite, background, clean, labels


def gathered(*, confounded: bool) -> tuple[pair_evidence.PairEvidence, Tensor, Tensor]:
    picture, composite, background, clean, labels = world(confounded=confounded)
    return gather(picture, composite, background, labels), clean, labels


def gather(
    picture: Tensor,
    composite: Tensor,
    background: Tensor,
    labels: Tensor,
    clean: tuple[Tensor, Tensor] | None = None,
) -> pair_evidence.PairEvidence:
    generator, samples = (torch.Generator().manual_seed(seed) for seed in (3, 4))
    return pair_evidence.gather(picture, composite, background, labels, CLASSES, generator, samples, clean)


def test_labels_that_follow_the_background_are_found_out() -> None:
    result, clean, labels = gathered(confounded=True)
    wrong = labels != clean

    assert result.decision.predictor == "g2"
    assert result.noise is None
    assert result.evidence.shares[1] > 0.2
    assert result.evidence.object_weight[~wrong].mean() > result.evidence.object_weight[wrong].mean() + 0.5
    own = result.log_probabilities.gather(1, labels[:, None])[:, 0]
    assert own[~wrong].median() > own[wrong].median() + 1


def test_ordinary_noise_leaves_the_background_out() -> None:
    result, clean, labels = gathered(confounded=False)

    assert result.decision.predictor == "stack"
    assert result.evidence.shares[1] == 0.0
    assert result.log_probabilities.argmax(dim=1).eq(clean).float().mean() > 0.9
    assert labels.eq(clean).float().mean() < 0.75


def test_labels_of_one_class_for_another_are_ranked_by_how_classes_are_mistaken() -> None:
    random = torch.Generator().manual_seed(0)
    clean = torch.arange(COUNT) % CLASSES
    labels = torch.where(torch.rand(COUNT, generator=random) < 0.4, (clean + 1) % CLASSES, clean)
    picture, composite = (features_of(clean, seed, certainty=2.0) for seed in (1, 2))
    result = gather(picture, composite, torch.zeros(COUNT, WIDTH), labels)
    tracker = ranking.MarginTracker(labels, CLASSES)
    tracker.record_logits(torch.arange(COUNT), result.log_probabilities)
    tracker.end_epoch()

    def average_precision(by: NoiseEstimate | None) -> float:
        issues = ranking.label_issues(labels, tracker, noise=by)
        assert issues is not None
        return measure.average_precision(issues.label_score, (labels != clean).numpy())

    assert result.noise is not None
    expected = 0.6 * torch.eye(CLASSES) + 0.4 * torch.eye(CLASSES).roll(1, dims=1)
    assert (result.noise.transition - expected).abs().max() < 0.15
    assert average_precision(result.noise) > average_precision(None) + 0.02


def test_the_same_evidence_is_gathered_every_time() -> None:
    one, other = (gathered(confounded=True)[0] for _ in range(2))

    assert torch.equal(one.evidence.object_weight, other.evidence.object_weight)
    assert one.decision == other.decision


def test_probes_that_are_known_already_are_used() -> None:
    picture, composite, background, clean, labels = world(confounded=False)
    known = (6.0 * functional.one_hot(clean, CLASSES)).log_softmax(dim=1)

    result = gather(picture, composite, background, labels, (known, known))

    assert result.log_probabilities.argmax(dim=1).equal(clean)
    assert result.noise is not None
    wrong = float((labels != clean).double().mean())
    assert result.noise.noise_rate == pytest.approx(wrong, abs=0.02)
    assert result.noise.interval[0] <= wrong <= result.noise.interval[1]


def test_a_weighted_probe_learns_from_what_weighs() -> None:
    _, composite, _, clean, labels = world(confounded=True)
    layer = nn.Linear(2 * WIDTH, CLASSES)
    random = torch.Generator().manual_seed(3)

    def accuracy(weights: Tensor) -> float:
        pair_evidence.fold_weighted_probe(layer, composite, labels, weights, random)
        return float((layer(composite).argmax(dim=1) == clean).float().mean())

    assert accuracy((labels == clean).float()) > accuracy((labels != clean).float()) + 0.3


def test_state_says_what_was_found() -> None:
    state = evidence_state.EvidenceState(COUNT, CLASSES, exchange=True)
    assert state.findings() == {}

    state.statistic.copy_(torch.tensor([0.06, 0.004]))
    state.answer_weights.copy_(torch.tensor([0.0, 1.0]))
    state.is_gathered.fill_(True)
    stated = state.findings()

    assert stated["labels_follow_background"]
    assert stated["answer"] == "g2"
    assert "labels follow the background: yes, L = 0.060" in str(stated["answer_reason"])
    chosen = state.findings("mean")
    assert chosen["answer"] == "mean"
    assert chosen["answer_reason"] == "labels follow the background: yes, L = 0.060 ± 0.004"
    assert {name for name in stated if stated[name] != chosen[name]} == {"answer", "answer_reason"}
    one, two = torch.randn(4, CLASSES), torch.randn(4, CLASSES)
    assert torch.allclose(state.answer(one, two), two.log_softmax(dim=1), atol=1e-6)


@pytest.mark.parametrize("exchange", [True, False])
def test_passes_are_restricted_to_what_is_drawn(exchange: bool) -> None:
    state = evidence_state.EvidenceState(6, CLASSES, exchange=exchange)
    state.drawn.copy_(torch.tensor([True, False, True, True, False, False]))
    of_host = state.restricted(lambda: [Pass(torch.tensor([0, 1, 3, 3])), Pass(torch.tensor([4, 5]))])
    of_all = state.restricted(None)

    assert of_host is not None
    pools = [one.pool.tolist() for one in of_host()]
    assert pools == ([[0, 3, 3], [4, 5]] if exchange else [[0, 1, 3, 3], [4, 5]])
    if exchange:
        assert of_all is not None
        assert [one.pool.tolist() for one in of_all()] == [[0, 2, 3]]
    else:
        assert of_all is None


def test_methods_without_steps_stay_without() -> None:
    restricted = evidence_state.EvidenceState(6, CLASSES, exchange=True).restricted(tuple)

    assert restricted is not None
    assert list(restricted()) == []


def test_what_is_known_of_the_noise_is_state() -> None:
    state, other, former = (evidence_state.EvidenceState(6, CLASSES, exchange=True) for _ in range(3))
    assert state.noise_estimate() is None
    state.transition.copy_(torch.full((CLASSES, CLASSES), 1 / CLASSES))
    state.noise_rate.copy_(torch.tensor([0.3, 0.2, 0.4]))
    other.load_state_dict(state.state_dict())
    noise = other.noise_estimate()
    assert noise is not None
    assert torch.equal(noise.transition, state.transition)
    assert noise.noise_rate == pytest.approx(0.3)
    assert noise.interval == pytest.approx((0.2, 0.4))

    written = {name: value for name, value in state.state_dict().items() if name not in evidence_state.LATER_BUFFERS}
    former.load_state_dict(written)

    assert former.noise_estimate() is None
