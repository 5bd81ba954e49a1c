"""Model archives: all or nothing, verified before use, nothing pickled, the same predictions as in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ml import errors
from ml.data import dataset
from ml.formats import fsync
from ml.scenes import generate
from ml.serving import model_archive
from ml.serving.predictor import Predictor
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer


@pytest.fixture(scope="module")
def training() -> Trainer:
    drawn = generate.draw(40, seed=1, image_size=16)
    pictures = dataset.LabeledImages(
        torch.from_numpy(drawn.images), torch.from_numpy(drawn.given_labels), generate.CLASSES
    )
    spec = TrainingSpec(network="small", image_size=16, epochs=1, batch_size=16, precision="f32", params={"dim": False})
    trained = Trainer.build(spec, pictures, device="cpu", threads=1)
    for _ in trained:
        pass
    return trained


def test_a_saved_archive_verifies_and_describes_its_model(training: Trainer, tmp_path: Path) -> None:
    saved = model_archive.save(tmp_path / "model", training, metrics={"test_accuracy": {"last": 0.5}})
    manifest = model_archive.verify(tmp_path / "model")

    assert manifest == saved
    assert manifest.classes == generate.CLASSES
    assert manifest.spec == training.spec
    assert manifest.metrics == {"test_accuracy": {"last": 0.5}}
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        model_archive.MANIFEST,
        model_archive.WEIGHTS,
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]
    weights = load_file(tmp_path / "model" / model_archive.WEIGHTS)
    assert {name.removeprefix("model.") for name in weights} >= set(training.method.state_dict())


def test_the_digest_does_not_depend_on_the_metrics(training: Trainer, tmp_path: Path) -> None:
    one = model_archive.save(tmp_path / "one", training, metrics={"a": 1.0})
    two = model_archive.save(tmp_path / "two", training, metrics={"a": 2.0})

    assert one.digest == two.digest
    assert one.digest.startswith("sha256:")


def test_check_squares_are_pictures_of_the_training_set(training: Trainer, tmp_path: Path) -> None:
    model_archive.save(tmp_path / "model", training)
    *_, check = model_archive.read(tmp_path / "model")
    originals = {image.tobytes() for image in generate.draw(40, seed=1, image_size=16).images}

    assert len(check) == model_archive.CHECK_IMAGES
    assert {image.numpy().tobytes() for image in check} <= originals


def test_an_archive_is_never_overwritten_and_a_failed_write_leaves_nothing(
    training: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_archive.save(tmp_path / "model", training)
    with pytest.raises(FileExistsError):
        model_archive.save(tmp_path / "model", training)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fsync, "flush", full)
    with pytest.raises(OSError, match="space"):
        model_archive.save(tmp_path / "other", training)
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_a_manifest_is_strict_json_whatever_the_metrics(training: Trainer, tmp_path: Path) -> None:
    model_archive.save(tmp_path / "model", training, metrics={"loss": float("nan")})

    assert json.loads((tmp_path / "model" / model_archive.MANIFEST).read_text())["metrics"] == {"loss": None}


@pytest.mark.parametrize("damage", ["flip", "truncate", "weights", "manifest", "no json", "other class", "format"])
def test_F25_any_damage_is_a_corrupt_archive(training: Trainer, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    model_archive.save(folder, training)
    weights, manifest = folder / model_archive.WEIGHTS, folder / model_archive.MANIFEST
    intact = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(intact[:-5] + bytes([intact[-5] ^ 1]) + intact[-4:])
    elif damage == "truncate":
        weights.write_bytes(intact[:-1])
    elif damage == "weights":
        weights.unlink()
    elif damage == "manifest":
        manifest.unlink()
    elif damage == "no json":
        manifest.write_text("{")
    else:
        facts = json.loads(manifest.read_text())
        facts |= (
            {"format": model_archive.FORMAT + 1} if damage == "format" else {"classes": ["x", *facts["classes"][1:]]}
        )
        manifest.write_text(json.dumps(facts))

    with pytest.raises(errors.ModelArchiveCorrupt):
        model_archive.verify(folder)
    with pytest.raises(errors.ModelArchiveCorrupt):
        Predictor.load(folder, device="cpu")


def test_F25_weights_of_another_network_are_refused_in_plain_words(training: Trainer, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    manifest = model_archive.save(folder, training)
    spec = manifest.spec.model_copy(update={"network": "resnet18"})
    assert spec.network != manifest.spec.network
    changed = manifest.model_copy(update={"spec": spec})
    document = changed.model_dump(mode="json")
    document["digest"] = model_archive.compute_digest(document)
    (folder / model_archive.MANIFEST).write_text(json.dumps(document))

    with pytest.raises(errors.ModelArchiveCorrupt) as caught:
        Predictor.load(folder, device="cpu")
    assert caught.value.detail == "the model's weights do not fit the network that its manifest names"
    assert "state_dict" in str(caught.value.__cause__)  # what the log needs
