"""A training on cached features of a frozen backbone: the same at every depth, and the same when it predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ml import errors, networks
from ml.blocks import reinitialisation
from ml.data.dataset import LabeledImages, Selection, Truth
from ml.data.image_store import ImageStore
from ml.data.stored_rows import in_memory
from ml.features import feature_file
from ml.features.encoder import Encoder
from ml.networks import chain
from ml.networks.chain import Chain
from ml.serving import model_archive
from ml.serving.predictor import Predictor
from ml.training import setup
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import SIDE, reports, same
from tests.ml.features.conftest import check_resuming

Specs = Callable[..., TrainingSpec]
DEPTHS = ("none", "last", "two", "all")
METHODS = ("ce", "elr", "dividemix", "sop_plus")  # one network, a memory, two networks and pools, two views
every_depth = pytest.mark.parametrize("tune", DEPTHS)


@every_depth
@pytest.mark.parametrize("method", METHODS)
def test_cached_inputs_are_what_a_prediction_computes(
    method: str, tune: str, spec: Specs, cached: LabeledImages, truth: Truth, pretrained: Path, tmp_path: Path
) -> None:
    """The published model predicts of pictures what the trained method says of cached features."""
    settings = spec(method=method, pretrained=True, tune=tune, epochs=2)
    training = Trainer.build(settings, cached, truth=truth, weights=pretrained, cache=tmp_path / "set")
    assert all(report.finite for report in reports(training))
    model_archive.save(tmp_path / "model", training)
    assert truth.test_images is not None
    predictor = Predictor.load(tmp_path / "model", "cpu", "f32")
    published = predictor.predict_squares([square.numpy() for square in in_memory(truth.test_images)])

    test = training.inputs.test
    assert test is not None
    with torch.no_grad():
        of_features = training.method.eval().heads(test.unaugmented(torch.arange(len(test))))
    for name, logits in of_features.items():
        of_pictures = torch.stack([torch.from_numpy(prediction.heads[name]) for prediction in published])
        torch.testing.assert_close(of_pictures, logits.softmax(dim=1), atol=5e-3, rtol=0)


@every_depth
def test_only_the_part_that_is_tuned_changes(
    tune: str, spec: Specs, cached: LabeledImages, pretrained: Path, tmp_path: Path
) -> None:
    training = Trainer.build(spec(pretrained=True, tune=tune), cached, weights=pretrained, cache=tmp_path)
    before = {name: tensor.clone() for name, tensor in training.picture_method().state_dict().items()}
    reports(training)

    changed = {name for name in same(before, dict(training.picture_method().state_dict())) if "running" not in name}
    frozen = {name for name in before if name.startswith("input.")}
    assert not changed & frozen
    assert {name for name in changed if name.endswith("weight")} == {
        name for name in before if name.endswith("weight") and name not in frozen
    }
    assert bool(frozen) == (tune != "all")


def first_network(training: Trainer) -> Chain:
    """Of a method that has networks."""
    return next(module for module in training.method.modules() if isinstance(module, Chain))


@pytest.mark.parametrize(("batch_norm", "is_limited"), [("pretrained", True), ("batch", False)])
def test_gradients_are_limited_where_statistics_are_fixed(
    batch_norm: str, is_limited: bool, spec: Specs, cached: LabeledImages, pretrained: Path
) -> None:
    """A classifier of huge weights has gradients far above the limit: one step moves the network by rate times 5."""
    settings = spec(pretrained=True, tune="all", batch_norm=batch_norm, learning_rate=0.01, weight_decay=0.0)
    training = Trainer.build(settings, cached, weights=pretrained)
    with torch.no_grad():
        first_network(training).classifier.weight.mul_(1e4)
    before = [parameter.detach().clone() for parameter in training.method.parameters()]

    next(iter(training))

    moves = [(old - new.detach()).norm() for old, new in zip(before, training.method.parameters(), strict=True)]
    moved = float(torch.stack(moves).norm())
    assert (moved == pytest.approx(0.01 * setup.FIXED_STATISTICS_CLIP, rel=0.01)) is is_limited
    assert moved > 0.04


def test_a_part_that_is_restarted_has_the_pretrained_weights_again(
    spec: Specs, cached: LabeledImages, pretrained: Path, tmp_path: Path
) -> None:
    """PES restarts last stage and classifier: with the statistics that `batch_norm: pretrained` needs."""
    settings = spec(method="ce", pretrained=True, tune="all", epochs=2)
    training = Trainer.build(settings, cached, weights=pretrained, cache=tmp_path)
    network, fresh = first_network(training), training.networks()
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    reports(training)
    moved = same(start, dict(network.state_dict()))
    assert {name.split(".")[0] for name in moved} == set(reinitialisation.NETWORK_PARTS)

    reinitialisation.reinitialise(network, fresh, reinitialisation.LATER_PARTS)

    apart = set(same(start, dict(network.state_dict())))
    assert {name for name in apart if not name.startswith("body.")} == {"classifier.weight", "classifier.bias"}


PES = {"warm_up": 0.25, "refine_last_stage": 0.25, "refine_classifier": 0.25}  # an epoch of each of its phases


@pytest.mark.parametrize(
    ("method", "params"),
    [("ce", {}), ("m_correction", {}), ("denll", {"localization": "backbone"}), ("pes", PES), ("pes_semi", {})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_statistics_of_pretrained_weights_stay_where_they_are_asked_for(
    method: str, params: dict[str, Any], spec: Specs, cached: LabeledImages, pretrained: Path, tmp_path: Path
) -> None:
    """Also of methods that switch their networks to evaluation and back or restart parts; scales and offsets learn as
    before."""

    def changed(batch_norm: str) -> set[str]:
        settings = spec(method=method, params=params, pretrained=True, tune="all", epochs=4, batch_norm=batch_norm)
        training = Trainer.build(settings, cached, weights=pretrained, cache=tmp_path)
        before = {name: tensor.clone() for name, tensor in training.method.state_dict().items()}
        reports(training)
        return set(same(before, dict(training.method.state_dict())))

    def of_batches(names: set[str]) -> set[str]:
        return {name for name in names if "running" in name or "num_batches" in name}

    fixed, moved = changed("pretrained"), changed("batch")
    assert not of_batches(fixed)
    assert of_batches(moved)
    weights = {name for name in moved if name.endswith(("weight", "bias"))}
    assert {name for name in fixed if name.endswith(("weight", "bias"))} == weights != set()


@every_depth
def test_a_resumed_training_ends_with_the_same_bits(
    tune: str, spec: Specs, cached: LabeledImages, pretrained: Path, tmp_path: Path
) -> None:
    """Also when the features that it began with are gone and are computed again."""
    settings = spec(pretrained=True, tune=tune)

    def build(cache: str) -> Trainer:
        return Trainer.build(settings, cached, weights=pretrained, cache=tmp_path / cache)

    check_resuming(build, tmp_path / "checkpoints")


def test_trainings_of_one_depth_share_their_features(
    spec: Specs, cached: LabeledImages, truth: Truth, pretrained: Path, tmp_path: Path
) -> None:
    """Whatever the method, the seed or the noise; other depths have files of their own."""
    done: list[int] = []

    def build(**changes: object) -> Trainer:
        settings = spec(pretrained=True, **changes)
        return Trainer.build(
            settings, cached, truth=truth, weights=pretrained, cache=tmp_path, progress=lambda n, _: done.append(n)
        )

    build(tune="last")
    first = len(done)
    assert first > 0
    build(tune="last", method="elr", seed=3, noise={"kind": "symmetric", "rate": 0.4})
    assert len(done) == first
    build(tune="none")
    assert len(done) > first
    assert len(list((tmp_path / feature_file.FOLDER).glob("picture-*.npy"))) == 4  # two depths, train and test


def test_excluded_images_are_not_encoded_again(
    spec: Specs, cached: LabeledImages, truth: Truth, pretrained: Path, tmp_path: Path
) -> None:
    """A version of the labels that excludes images finds the features of all; rows are those of the images left."""
    done: list[int] = []
    settings = spec(pretrained=True, tune="last", validation_fraction=0.0)

    def build(images: LabeledImages) -> Trainer:
        return Trainer.build(
            settings, images, truth=truth, weights=pretrained, cache=tmp_path, progress=lambda n, _: done.append(n)
        )

    whole = build(cached)
    first = len(done)
    positions = torch.tensor([row for row in range(len(cached)) if row % 3])
    fewer = replace(
        cached,
        images=cached.images[positions],
        labels=cached.labels[positions],
        selection=Selection(cached.images, positions),
    )
    training = build(fewer)

    assert len(done) == first
    rows = torch.arange(len(positions))
    assert len(training.inputs.train) == len(positions)
    assert torch.equal(training.inputs.train.unaugmented(rows), whole.inputs.train.unaugmented(positions))
    assert torch.equal(training.inputs.train.raw(rows), in_memory(fewer.images))
    assert len(reports(training)) == settings.epochs


def test_pictures_are_normalised_as_the_weights_need_it(spec: Specs, cached: LabeledImages, pretrained: Path) -> None:
    training = Trainer.build(spec(pretrained=True, tune="all"), cached, weights=pretrained)

    assert training.mean.tolist() == [0.4, 0.5, 0.6]
    assert training.std.tolist() == [0.2, 0.3, 0.4]


def test_the_encoder_agrees_with_the_network_that_it_was_cut_from(pretrained: Path, cached: LabeledImages) -> None:
    whole = networks.build("small", 4, SIDE, pretrained / "small.safetensors").eval()
    pictures = ImageStore(
        in_memory(cached.images), torch.zeros(3), torch.ones(3), device=torch.device("cpu")
    ).unaugmented(torch.arange(16))
    with torch.no_grad():
        logits = whole(pictures)
        for tune in ("none", "last", "two"):
            frozen, rest = chain.cut(whole, tune)
            exact = Encoder(frozen, SIDE)
            prepared = exact.prepare(pictures[:4], half=False)
            torch.testing.assert_close(rest.eval()(exact(pictures).output), logits)
            torch.testing.assert_close(rest(prepared(pictures).output), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"tune": "none"}, "tune"),
        ({"batch_norm": "pretrained"}, "batch_norm"),
        ({"first_answer": True}, "first_answer"),
        ({"method": "denll", "params": {"localization": "backbone"}}, "params/localization"),
        ({"method": "denll", "pretrained": True, "tune": "last"}, "params/localization"),
        ({"pretrained": True, "tune": "last", "color_jitter": 0.2}, "color_jitter"),
    ],
)
def test_settings_of_a_frozen_part_that_exclude_each_other_are_refused(
    settings: dict[str, Any], field: str, spec: Specs, cached: LabeledImages, pretrained: Path
) -> None:
    with pytest.raises(errors.ContradictorySpec, match=f"^{field}: "):
        Trainer.build(spec(**settings), cached, weights=pretrained)
