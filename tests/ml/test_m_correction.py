"""M-correction: the beta mixture, which prediction replaces a label, how images are mixed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ml import networks
from ml.blocks import beta_mixture, losses, mixup, schedules
from ml.method import Batch, Phase, TrainHyperparameters
from ml.methods import m_correction
from tests.ml.conftest import CLASSES, SIDE

COUNT = 16


def made(**params: Any) -> m_correction.Method:
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    return m_correction.Method(m_correction.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def phases(method: m_correction.Method, epochs: int = 300) -> list[Phase]:
    return list(method.phases(TrainHyperparameters(epochs, 0.1, 0.9, 1e-4, schedules.constant)))


def batch(epoch: int = 200) -> Batch:
    images = torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    mixing = torch.Generator().manual_seed(2)
    return Batch(
        (images,), torch.arange(COUNT) % CLASSES, torch.arange(COUNT), lambda _: None, epoch, generator=lambda _: mixing
    )


def drawn(alpha: float = 32.0) -> tuple[Tensor, Tensor]:
    """λ and partners as that batch draws them."""
    mixing = torch.Generator().manual_seed(2)
    return mixup.draw_lambda(alpha, mixing), mixup.draw_partners(torch.arange(COUNT), mixing)


# --- the mixture ---


def test_the_mixture_finds_the_two_densities_that_made_the_losses() -> None:
    torch.manual_seed(0)
    small = torch.distributions.Beta(2.0, 10.0).sample((3000,)).double()
    large = torch.distributions.Beta(10.0, 3.0).sample((1000,)).double()
    weight, alpha, beta = beta_mixture.fit_components(torch.cat([small, large]).clamp(1e-3, 1 - 1e-3))

    assert weight.tolist() == pytest.approx([0.75, 0.25], abs=0.08)
    assert (alpha / (alpha + beta)).tolist() == pytest.approx([2 / 12, 10 / 13], abs=0.1)


def test_large_losses_are_doubted_and_small_ones_trusted() -> None:
    torch.manual_seed(0)
    right, wrong = torch.rand(300) * 0.5, 2.0 + torch.rand(200)
    mixture = beta_mixture.BetaMixture()
    mixture.fit(torch.cat([right, wrong]))

    assert mixture.noisy_probability(right).max() < 0.3
    assert mixture.noisy_probability(wrong).min() > 0.7
    assert mixture.noisy_probability(torch.tensor([100.0]))[0] == mixture.noisy_probability(wrong).max()
    assert mixture.noisy_probability(torch.tensor([-1.0]))[0] >= 1e-4


def test_the_posterior_never_falls_behind_its_maximum() -> None:
    table = torch.tensor([0.1, 0.5, 0.9, 0.4])

    assert beta_mixture.hold_maximum(table).tolist() == pytest.approx([0.1, 0.5, 0.9, 0.9])


@pytest.mark.parametrize("losses", [torch.full((50,), 0.3), torch.tensor([0.1] * 25 + [3.0] * 25)])
def test_losses_on_one_or_two_points_still_have_a_posterior(losses: Tensor) -> None:
    mixture = beta_mixture.BetaMixture()
    mixture.fit(losses)

    assert torch.isfinite(mixture.table).all()
    assert torch.isfinite(mixture.noisy_probability(losses)).all()


def test_the_first_entry_is_the_posterior_at_the_margin_and_not_at_zero() -> None:
    mixture = beta_mixture.BetaMixture()
    torch.manual_seed(0)
    values = torch.rand(400)
    mixture.fit(values)
    smallest, largest = torch.quantile(values.double(), torch.tensor([0.05, 0.95], dtype=torch.float64))
    inner = values.double()[(values >= smallest) & (values <= largest)]
    parameters = beta_mixture.fit_components(((inner - smallest) / (largest - smallest + 1e-6)).clamp(1e-3, 1 - 1e-3))

    margin = torch.tensor([beta_mixture.LOOKUP_MARGIN], dtype=torch.float64)
    assert float(mixture.table[0]) == pytest.approx(float(beta_mixture.responsibilities(margin, *parameters)[1]))


def test_before_the_first_fit_every_label_is_half_doubted() -> None:
    assert beta_mixture.BetaMixture().noisy_probability(torch.rand(5)).tolist() == [0.5] * 5


# --- the steps ---


@pytest.mark.parametrize(
    ("variant", "epochs", "expected"),
    [("hard", 300, [105, 195]), ("soft", 300, [105, 5, 190]), ("soft", 30, [10, 1, 19]), ("soft", 2, [1, 1])],
)
def test_phases_scale_with_the_epochs(variant: str, epochs: int, expected: list[int]) -> None:
    assert [phase.epochs for phase in phases(made(variant=variant), epochs)] == expected


@pytest.mark.parametrize("noisy_probability", [0.0, 1.0])
def test_a_trusted_label_stays_and_a_doubted_one_yields_to_the_networks_answer(noisy_probability: float) -> None:
    method = made(prior_weight=0.0)
    method.train()
    method.mixture.table.fill_(noisy_probability)
    seen = batch()
    share, partner = drawn()
    answers = method.network(seen.images).argmax(dim=1)
    logits = method.network(mixup.mix(seen.images, share, partner))
    expected_targets = losses.one_hot(answers if noisy_probability else seen.labels, CLASSES)
    expected = losses.soft_cross_entropy(logits, mixup.mix(expected_targets, share, partner))

    assert float(phases(method)[1].loss(seen).detach()) == pytest.approx(float(expected.detach()), rel=2e-3)


def test_only_the_mixed_pass_learns_and_the_mode_is_as_before() -> None:
    method = made()
    method.train()
    phases(method)[1].loss(batch()).backward()

    assert all(p.grad is not None for p in method.network.parameters())
    assert method.network.training


def test_guided_epochs_mix_images_by_clean_probability_and_given_labels_by_lambda() -> None:
    """As the released code: no prediction replaces a label yet, and no penalty is added."""
    method = made(variant="soft", prior_weight=5.0)
    method.train()
    method.mixture.table.copy_(torch.linspace(0.05, 0.95, beta_mixture.BINS))
    seen = batch()
    share, partner = drawn()
    method.eval()
    with torch.no_grad():
        noisy = method.mixture.noisy_probability(losses.cross_entropies(method.network(seen.images), seen.labels))
    method.train()
    total = (1 - noisy) + (1 - noisy[partner])
    own, other = ((1 - noisy) / total)[:, None, None, None], ((1 - noisy[partner]) / total)[:, None, None, None]
    logits = method.network(own * seen.images + other * seen.images[partner])
    losses_of_both = [torch.nn.functional.cross_entropy(logits, y) for y in (seen.labels, seen.labels[partner])]
    expected = share * losses_of_both[0] + (1 - share) * losses_of_both[1]

    guided = next(phase for phase in phases(method) if phase.name == "guided")
    assert float(guided.loss(seen).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


class Mean(nn.Module):
    """Stands for a network: its logits are the images' first pixel."""

    class_count = CLASSES

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :CLASSES]


def test_guided_mixing_takes_more_of_the_image_whose_label_is_trusted() -> None:
    """Of a pair, one trusted and one doubted, both mixtures are nearly the trusted image."""
    method = made(variant="soft", prior_weight=0.0)
    seen: list[Tensor] = []

    class Watched(Mean):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return super().forward(images)

    method.network = Watched()  # type: ignore[assignment]
    method.mixture.table[:50], method.mixture.table[50:] = 0.0, 1.0
    seen_batch = batch()
    noisy_probability = method.mixture.noisy_probability(
        losses.cross_entropies(Mean()(seen_batch.images), seen_batch.labels)
    )
    assert 0 < int((noisy_probability > 0.5).sum()) < COUNT
    phases(method)[1].loss(seen_batch)
    _, partner = drawn()
    pairs = [row for row in range(COUNT) if noisy_probability[row] > 0.5 > noisy_probability[partner[row]]]

    assert pairs
    for row in pairs:
        torch.testing.assert_close(seen[-1][row], seen_batch.images[partner[row]], rtol=1e-2, atol=1e-2)


def test_soft_answers_cool_down_to_hard_ones() -> None:
    """At 300 epochs from epoch 110, over 89 epochs; after them a soft answer is the answered class."""
    method = made(variant="soft", prior_weight=0.0)
    method.network = Mean()  # type: ignore[assignment]
    method.mixture.table.fill_(1.0)
    last = phases(method)[-1]
    values = [float(last.loss(batch(epoch))) for epoch in (110, 150, 198, 299)]
    seen_batch = batch()
    _, partner = drawn()
    half = torch.tensor(0.5)
    answers = losses.one_hot(Mean()(seen_batch.images).argmax(dim=1), CLASSES)
    mixed = mixup.mix(seen_batch.images, half, partner)
    hard = losses.soft_cross_entropy(Mean()(mixed), mixup.mix(answers, half, partner))

    assert values[0] != values[1] != values[2]
    assert values[2] == values[3] == pytest.approx(float(hard), rel=1e-2)
