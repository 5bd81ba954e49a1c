"""The command line, from images to a model, stopped and resumed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from PIL import Image

from ml import __main__ as command
from ml import commands, methods, networks
from ml.networks import weights as pretrained_weights
from ml.scenes import generate
from ml.serving import model_archive
from ml.training import spec
from tests.ml.conftest import halves


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split, count in (("train", 48), ("test", 16)):
        images, labels = halves(count, seed=count)
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            path = tmp_path / "set" / split / "abcd"[label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.numpy()).save(path)
    return tmp_path / "set"


def arguments(pictures: Path, out: Path, **changes: object) -> list[str]:
    options = {"method": "ce", "network": "small", "image-size": 16, "epochs": 2, "batch-size": 16, "precision": "f32"}
    return ["train", str(pictures), "--out", str(out)] + [f"--{k}={v}" for k, v in (options | changes).items()]


def test_images_become_a_verified_model(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert command.main(arguments(pictures, out, noise='{"kind": "symmetric", "rate": 0.2}')) == 0
    printed = capsys.readouterr()

    self_test = json.loads(printed.out)["self_test"]
    assert (self_test["noise"], self_test["rate"]) == ("symmetric", 0.2)
    assert 0 < self_test["realised_rate"] < 0.4
    assert set(json.loads(printed.out)["test_accuracy"]) >= {"last", "best_noisy_val", "best_test", "mean_last10"}
    assert "epoch 2/2 train: loss" in printed.err
    assert model_archive.verify(out / commands.MODEL).classes == tuple("abcd")
    with (out / commands.ISSUES).open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert sorted(int(row["index"]) for row in listed) == list(range(48))
    assert all((pictures / row["path"]).is_file() for row in listed)

    assert command.main(arguments(pictures, out, noise='{"kind": "symmetric", "rate": 0.2}')) == 0
    assert "resumed after epoch 2" in capsys.readouterr().err
    assert command.main(["measure", str(out)]) == 0


def test_a_failure_is_one_line(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ({"method": "nothing"}, {"epochs": 0}, {"network": "nothing"}):
        assert command.main(arguments(pictures, tmp_path / "out", **wrong)) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("train: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train nowhere", "nowhere: there is no such file or folder"),
        ("train text", "text: not a zip and not a tar"),
        ("train empty --spec nowhere.json", "nowhere.json: No such file"),
        ("train empty --spec text", "text is not JSON"),
        ("train empty --spec list", "list is not a JSON object"),
        ("train empty --epochs 0 --learning-rate x", "epochs: "),
        ("study table1 --table --out nowhere", "no results in nowhere"),
        ("measure empty", "empty holds no finished training"),
        ("figures empty empty", "empty holds no training"),
        ("convert nowhere out.zip", "nowhere: there is no such file or folder"),
        ("convert text out.zip", "text: not a zip and not a tar"),
        ("scenes nowhere/out.zip --train 6 --test 6", "nowhere/out.zip: No such file"),
        ("study table1 --data cifar10=text --only row=CE", "text: not a zip and not a tar"),
    ],
)
def test_a_missing_or_damaged_file_is_named_in_one_line(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("{")
    (tmp_path / "list").write_text("[1]")

    assert command.main(arguments.split()) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{arguments.split()[0]}: ")
    assert message in line
    assert not (tmp_path / "out.zip").exists()


def test_without_a_network_the_devices_default_is_used(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = arguments(pictures, out, epochs=1, device="cpu")
    assert command.main([option for option in options if not option.startswith("--network")]) == 0
    assert json.loads((out / commands.SPEC).read_text())["network"] == spec.DEFAULT_NETWORKS["cpu"]


def test_pretrained_weights_decide_how_images_are_cut_unless_an_option_does(pictures: Path, tmp_path: Path) -> None:
    file, weights = tmp_path / "small.safetensors", tmp_path / "weights"
    safetensors.torch.save_file(networks.build("small", 4, 16).state_dict(), file)
    trained_with = {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.3, 0.3), "image_size": 16, "resize": "crop"}
    pretrained_weights.add_file(weights, file, "small", **trained_with)

    def resize(*more: str) -> object:
        options = arguments(pictures, tmp_path / "out", epochs=1)
        assert command.main([*options, f"--weights={weights}", *more]) == 0
        return json.loads((tmp_path / "out" / commands.SPEC).read_text())["resize"]

    assert resize("--pretrained=true") == "crop"
    assert resize("--pretrained=true", "--resize=squash") == resize() == "squash"


def test_a_spec_file_and_options_on_top(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"epochs": 9, "momentum": 0.5}))
    out = tmp_path / "out"
    assert command.main([*arguments(pictures, out, epochs=1), f"--spec={tmp_path / 'spec.json'}"]) == 0

    saved = json.loads((out / commands.SPEC).read_text())
    assert (saved["epochs"], saved["momentum"], saved["network"]) == (1, 0.5, "small")


def test_params_follow_from_the_images_unless_they_are_set(tmp_path: Path) -> None:
    generate.write_archive(tmp_path / "scenes.zip", train=60, test=6, image_size=16)

    def chosen(*more: str) -> dict[str, object]:
        options = arguments(tmp_path / "scenes.zip", tmp_path / "out", method="denll", epochs=1)
        assert command.main([*options, *more]) == 0
        saved: dict[str, object] = json.loads((tmp_path / "out" / commands.SPEC).read_text())["params"]
        return saved

    preset = methods.load("denll").ABOUT["presets"]["paper"]
    assert chosen("--preset=paper", '--params={"split": "complement"}') == preset | {"split": "complement"}
    assert chosen() == methods.load("denll").ABOUT["presets"]["confounded"]
    assert chosen("--params={}") == {}


def test_a_published_training_is_the_presets_and_options_override_it(pictures: Path, tmp_path: Path) -> None:
    options = arguments(pictures, tmp_path / "out", method="sop_plus", epochs=1)
    assert command.main([*options, "--preset=cifar10", "--published"]) == 0
    saved = json.loads((tmp_path / "out" / commands.SPEC).read_text())

    published = methods.published_training("sop_plus", "cifar10")
    same = {name: saved[name] for name in ("schedule_unit", "floor", "weight_decay", "validation_fraction")}
    assert same == {name: published[name] for name in same}
    assert (saved["epochs"], saved["network"]) == (1, "small")
    assert saved["params"] == methods.preset("sop_plus", "cifar10")
    assert command.main([*options, "--published"]) != 0


@pytest.mark.parametrize("option", ["--params", "--noise"])
def test_an_option_that_is_not_json_is_named(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["train", "anywhere", option, "{a}"])
    assert f"argument {option}: not JSON" in capsys.readouterr().err


def test_figures_of_a_training_that_started_from_weights_need_them(pictures: Path, tmp_path: Path) -> None:
    out, weights = tmp_path / "out", tmp_path / "weights"
    file = tmp_path / "small.safetensors"
    safetensors.torch.save_file(networks.build("small", 4, 16).state_dict(), file)
    normalisation = {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.3, 0.3), "image_size": 16, "resize": "squash"}
    pretrained_weights.add_file(weights, file, "small", **normalisation)
    assert command.main([*arguments(pictures, out, epochs=1, pretrained="true"), f"--weights={weights}"]) == 0

    assert command.main(["figures", str(out), str(pictures)]) == 1
    assert command.main(["figures", str(out), str(pictures), f"--weights={weights}"]) == 0
    assert (out / "figures" / "figures.json").is_file()
    assert model_archive.verify(out / commands.MODEL).mean == pytest.approx((0.5, 0.4, 0.3))


def test_two_devices_train_as_one_does(pictures: Path, tmp_path: Path) -> None:
    """In a process of its own, because it forks."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert command.main(arguments(pictures, one, **{"learning-rate": 0.01, "threads": 1})) == 0
    options = arguments(pictures, two, **{"learning-rate": 0.01, "threads": 1, "devices": "cpu,cpu"})
    done = subprocess.run(
        [sys.executable, "-m", "ml", *options], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]

    def losses(out: Path) -> list[float]:
        return [json.loads(line)["train_loss"] for line in (out / commands.EPOCHS).read_text().splitlines()]

    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    assert model_archive.verify(two / commands.MODEL).classes == tuple("abcd")
