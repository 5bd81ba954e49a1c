"""Exports: what leaves the service opens elsewhere, predicts the same, and carries no image and no training state."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from ml import errors, methods, networks
from ml.data import dataset
from ml.networks import plain
from ml.scenes import generate
from ml.serving import export_manifest, export_reader, export_readme, model_archive, model_export
from ml.serving.predictor import Predictor
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests import pretrained

SIDE, COUNT = 16, 40


def train(folder: Path, weights: Path | None = None, **fields: Any) -> Path:
    """A model archive of one epoch on scenes."""
    drawn = generate.draw(COUNT, seed=1, image_size=SIDE)
    images = dataset.LabeledImages(
        torch.from_numpy(drawn.images), torch.from_numpy(drawn.given_labels), generate.CLASSES
    )
    spec = {"network": "small", "image_size": SIDE, "epochs": 1, "batch_size": 16, "precision": "f32"} | fields
    trainer = Trainer.build(
        TrainingSpec.model_validate(spec), images, device="cpu", threads=1, weights=weights, cache=folder
    )
    for _ in trainer:
        pass
    model_archive.save(folder / "model", trainer, metrics={"test_accuracy": {"last": 0.5}})
    return folder / "model"


def unseen(count: int = 12) -> list[NDArray[np.uint8]]:
    return list(generate.draw(count, seed=7, image_size=SIDE).images)


def probabilities(predictor: Predictor) -> NDArray[np.float32]:
    return np.stack([one.probabilities for one in predictor.predict_squares(unseen())])


@pytest.mark.parametrize("method", [name for name in methods.names() if name != "denll"])
def test_an_export_of_every_method_predicts_the_same(method: str, tmp_path: Path) -> None:
    archive = train(tmp_path, method=method)
    model_export.write(archive, tmp_path / "model.zip")

    expected = probabilities(Predictor.load(archive, device="cpu", precision="f32"))
    assert np.abs(probabilities(export_reader.load(tmp_path / "model.zip", "cpu")) - expected).max() < 1e-5


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"fusion": "concat", "split": "median"},
        {"host": "dividemix"},
        {"loss": "gated", "gates": "joint"},
        {"lm": "off"},
    ],
    ids=str,
)
def test_an_export_of_denll_predicts_and_locates_the_same(params: dict[str, Any], tmp_path: Path) -> None:
    archive = train(tmp_path, method="denll", params=params)
    manifest = model_export.write(archive, tmp_path / "model.zip", name="pets")
    with zipfile.ZipFile(tmp_path / "model.zip") as opened:
        opened.extractall(tmp_path / "extracted")

    original = Predictor.load(archive, device="cpu", precision="f32")
    for place in (tmp_path / "model.zip", tmp_path / "extracted"):
        reopened = export_reader.load(place, "cpu")
        assert np.abs(probabilities(reopened) - probabilities(original)).max() < 1e-5
        for one, two in zip(
            reopened.predict_squares(unseen(), maps=True), original.predict_squares(unseen(), maps=True), strict=True
        ):
            assert one.location == pytest.approx(two.location, abs=1e-3)
            assert one.map == pytest.approx(two.map, abs=1e-3)
    assert (manifest.localization is not None) == original.localizes
    assert manifest.classes == generate.CLASSES
    assert manifest.digest == original.digest
    assert manifest.metrics == {"test_accuracy": {"last": 0.5}}


@pytest.mark.parametrize("tune", ["none", "last", "two", "all"])
def test_an_export_holds_the_whole_network_where_a_part_stayed_frozen(tune: str, tmp_path: Path) -> None:
    pretrained.install_small(tmp_path, SIDE)
    params = {"localization": "backbone"}
    archive = train(tmp_path, weights=tmp_path, method="denll", params=params, pretrained=True, tune=tune)
    manifest = model_export.write(archive, tmp_path / "model.zip")

    expected = probabilities(Predictor.load(archive, device="cpu", precision="f32"))
    assert np.abs(probabilities(export_reader.load(tmp_path / "model.zip", "cpu")) - expected).max() < 1e-4
    assert manifest.backbone == export_manifest.Backbone(name="small", source=None, licence=None)
    whole = networks.build("small", len(generate.CLASSES), SIDE)
    with zipfile.ZipFile(tmp_path / "model.zip") as opened:
        opened.extract(export_manifest.WEIGHTS, tmp_path)
    whole.load_state_dict(load_file(tmp_path / export_manifest.WEIGHTS))


def test_no_image_of_the_training_set_and_no_training_state_leaves(tmp_path: Path) -> None:
    archive = train(tmp_path, method="denll", params={"host": "elr"})
    manifest = model_export.write(archive, tmp_path / "model.zip")
    tensors: dict[str, torch.Tensor] = {}
    with zipfile.ZipFile(tmp_path / "model.zip") as opened:
        content = b"".join(opened.read(name) for name in opened.namelist())
        for name in opened.namelist():
            if name.endswith(".safetensors"):
                opened.extract(name, tmp_path)
                tensors |= {f"{name}/{key}": value for key, value in load_file(tmp_path / name).items()}

    *_, check = model_archive.read(archive)
    assert check.numpy().tobytes() in (archive / model_archive.WEIGHTS).read_bytes()  # the images to look for
    assert not any(image.numpy().tobytes() in content for image in check)
    assert not any(tensor.dtype == torch.uint8 for tensor in tensors.values())
    assert not [key for key, tensor in tensors.items() if COUNT in tensor.shape]  # nothing for each image
    assert {"base1.memory.values", "base2.memory.values"} <= set(manifest.left_out)
    averages = tensors[f"{export_manifest.REST}/deconfounder.class_background.averages"]
    assert torch.equal(averages, averages[:1].expand_as(averages))  # their mean, none of a class


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_plain_torchvision_opens_it_as_its_readme_says(resize: str, tmp_path: Path) -> None:
    archive = train(tmp_path, method="ce", network="resnet18", resize=resize)
    manifest = model_export.write(archive, tmp_path / "model.zip", name="pets")
    with zipfile.ZipFile(tmp_path / "model.zip") as opened:
        opened.extractall(tmp_path / "out")
    photo = np.random.default_rng(0).integers(0, 256, (30, 70, 3)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "out" / "photo.jpg")

    code = export_readme.python_code(manifest)
    assert code in (tmp_path / "out" / export_manifest.README).read_text()
    assert "denll" not in code
    run = subprocess.run(
        [sys.executable, "-I", "-c", code + "print(json.dumps(probabilities))"],
        cwd=tmp_path / "out", check=True, capture_output=True, text=True,
    )  # fmt: skip
    (expected,) = export_reader.load(tmp_path / "model.zip", "cpu").predict([photo])
    answer = json.loads(run.stdout)
    assert list(answer) == list(generate.CLASSES)
    assert list(answer.values()) == pytest.approx(expected.probabilities.tolist(), abs=1e-4)


def test_the_published_architecture_takes_the_weights_unchanged(tmp_path: Path) -> None:
    """As the README of a network with the published stem says it, in one line."""
    import torchvision  # type: ignore[import-untyped]

    network = networks.build("resnet18", 5, 224).eval()
    published = {network.published_names[key]: value for key, value in network.state_dict().items()}
    theirs = torchvision.models.resnet18(num_classes=5)
    theirs.load_state_dict(published)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(images), network(images), atol=1e-5)


ONE_OF_EACH_FAMILY = (
    "resnet34", "resnet50", "alexnet", "vgg11_bn", "squeezenet1_1", "densenet121", "mobilenet_v2", "mobilenet_v3_small",
    "efficientnet_b0", "shufflenet_v2_x0_5", "regnet_y_400mf", "googlenet", "convnext_tiny", "swin_t",
    "efficientnet_lite0", "timm_resnet18",
)  # fmt: skip


@pytest.mark.parametrize("image_size", [64, 96])
@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_a_network_of_the_library_computes_the_same_with_our_weights(name: str, image_size: int) -> None:
    torch.manual_seed(3)
    network = networks.build(name, 4, image_size).eval()
    theirs = plain.build(name, 4, image_size, published_stem=False)
    assert theirs is not None
    scope: dict[str, Any] = {"torch": torch}
    exec("\n".join(theirs.code), scope)
    images = torch.randn(2, 3, image_size, image_size)

    published = {network.published_names[key]: value for key, value in network.state_dict().items()}
    for model in (theirs.model, scope["model"]):
        model.load_state_dict(published)
        with torch.no_grad():
            assert torch.allclose(model.eval()(images), network(images), rtol=1e-3, atol=1e-4)


def test_networks_that_nobody_publishes_have_no_library() -> None:
    assert plain.build("small", 4, 32, published_stem=False) is None
    assert plain.build("preact_resnet18", 4, 32, published_stem=False) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "version", "escape", "empty"])
def test_damage_is_a_corrupt_archive(damage: str, tmp_path: Path) -> None:
    archive = train(tmp_path, method="ce")
    model_export.write(archive, tmp_path / "model.zip")
    broken = tmp_path / "broken.zip"
    whole = (tmp_path / "model.zip").read_bytes()
    if damage == "truncate":
        broken.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        broken.write_bytes(b"")
    else:
        with zipfile.ZipFile(tmp_path / "model.zip") as opened, zipfile.ZipFile(broken, "w") as out:
            for name in opened.namelist():
                data = opened.read(name)
                if damage == "flip" and name == export_manifest.WEIGHTS:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                if name == export_manifest.MANIFEST:
                    facts = json.loads(data)
                    if damage == "no manifest":
                        continue
                    if damage == "version":
                        facts["version"] += 1
                    if damage == "escape":
                        facts["files"]["../secret"] = {"bytes": 1, "sha256": "0" * 64}
                    data = json.dumps(facts).encode()
                out.writestr(name, data)

    with pytest.raises(errors.ModelArchiveCorrupt):
        export_reader.load(broken, "cpu")


def test_the_same_model_makes_the_same_bytes_and_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = train(tmp_path, method="ce")
    model_export.write(archive, tmp_path / "one.zip")
    model_export.write(archive, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(model_export.fsync, "flush", full)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="space"):
        model_export.write(archive, tmp_path / "three.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_commands_export_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ml import __main__ as command_line

    archive = train(tmp_path, method="ce")
    Image.fromarray(unseen(1)[0]).save(tmp_path / "photo.png")
    assert command_line.main(["export", str(archive), "--out", str(tmp_path / "model.zip")]) == 0
    capsys.readouterr()
    answers = []
    for model in (archive, tmp_path / "model.zip"):
        assert command_line.main(["predict", str(model), str(tmp_path / "photo.png"), "--device", "cpu"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    assert {entry["label"] for entry in answers[0]["top_k"]} <= set(generate.CLASSES)
