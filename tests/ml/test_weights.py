"""Pretrained weights get into their folder from a package or a file, once converted, with what is known of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ml import __main__ as command
from ml import commands, errors, networks
from ml.formats import weights_folder
from ml.networks import weights, weights_sources

FACTS = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "image_size": 32, "resize": "squash"}


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(networks.build("small", 4, 32).state_dict())


def test_a_pth_file_becomes_safetensors_with_a_record(tmp_path: Path, state: dict[str, Tensor]) -> None:
    file = tmp_path / "mine.pth"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, file)
    record = weights.add_file(tmp_path / "weights", file, "small.mine", licence="MIT", **FACTS)

    assert (record.name, record.network, record.licence, record.source) == (
        "small.mine",
        "small",
        "MIT",
        "file mine.pth",
    )
    assert (record.mean, record.std, record.image_size, record.resize) == tuple(FACTS.values())
    assert weights.find(tmp_path / "weights", "small.mine") == record
    stored = load_file(weights.file_of(tmp_path / "weights", record))
    assert all(torch.equal(stored[name], tensor) for name, tensor in state.items())
    assert len(stored) == len(state)


def test_a_converted_file_says_itself_what_it_is(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """It can be carried to a machine without a network and added there without any option."""
    save_file(state, tmp_path / "x.safetensors")
    here = weights.add_file(tmp_path / "here", tmp_path / "x.safetensors", "small", source="us", **FACTS)
    there = weights.add_file(tmp_path / "there", weights.file_of(tmp_path / "here", here))

    assert there == here


def test_options_override_what_a_file_says(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "x.safetensors")
    first = weights.add_file(tmp_path / "a", tmp_path / "x.safetensors", "small", **FACTS)
    changed = weights.add_file(tmp_path / "b", weights.file_of(tmp_path / "a", first), "small.b", image_size=64)

    assert (changed.name, changed.image_size, changed.mean) == ("small.b", 64, FACTS["mean"])


def test_the_normalisation_of_known_networks_is_known(tmp_path: Path) -> None:
    save_file(networks.build("resnet18", 4, 224).state_dict(), tmp_path / "x.safetensors")
    record = weights.add_file(tmp_path / "weights", tmp_path / "x.safetensors", "resnet18")

    assert record.mean == pytest.approx((0.485, 0.456, 0.406))
    assert (record.image_size, record.resize, record.licence) == (224, "crop", "unknown")


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("vit_b_16", 224), ("vit_b_16.imagenet1k_swag_e2e_v1", 384), ("vit_b_16.mine", 224)],
)
def test_the_tag_says_which_published_weights_a_file_may_hold(name: str, image_size: int, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "file.safetensors")

    assert weights_sources.from_file(tmp_path / "file.safetensors", name).facts["image_size"] == image_size


def test_what_torchvision_normalises_inside_a_network_is_normalised_outside(tmp_path: Path) -> None:
    """Its GoogLeNet and Inception change images that are normalised as for ImageNet to the range from -1 to 1."""
    from torchvision import models  # type: ignore[import-untyped]

    published = models.googlenet(weights=None, aux_logits=False, init_weights=False, transform_input=True)
    save_file(published.state_dict(), tmp_path / "x.safetensors")
    record = weights.add_file(tmp_path, tmp_path / "x.safetensors", "googlenet")
    pixels = torch.rand(1, 3, 8, 8)
    imagenet = (pixels - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )

    ours = (pixels - torch.tensor(record.mean).view(3, 1, 1)) / torch.tensor(record.std).view(3, 1, 1)
    torch.testing.assert_close(ours, published._transform_input(imagenet))


def test_tensors_of_densenets_are_renamed_as_their_library_does(tmp_path: Path) -> None:
    """Their published files have a dot in names of modules, which torch no longer allows."""
    state = networks.build("densenet121", 4, 224, published_stem=True)
    own = {state.published_names[key]: value for key, value in state.state_dict().items()}
    old = {re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", key): value for key, value in own.items()}
    assert len(old.keys() - own.keys()) > 500
    save_file(old, tmp_path / "x.safetensors")

    assert weights_sources.from_file(tmp_path / "x.safetensors", "densenet121").tensors.keys() == own.keys()


def test_the_bundled_weights_normalise_as_their_network_was_trained(tmp_path: Path) -> None:
    """Its input is (x - 127) / 128 for pixels x from 0 to 255."""
    record = weights.add(tmp_path, "efficientnet_lite0")
    pixels = torch.tensor([0.0, 127.0, 255.0])

    torch.testing.assert_close((pixels / 255 - record.mean[0]) / record.std[0], (pixels - 127) / 128)
    assert record.licence == "Apache-2.0"


def test_bundled_weights_are_added_once_and_stay_removed(tmp_path: Path) -> None:
    assert [record.name for record in weights.add_bundled(tmp_path)] == ["efficientnet_lite0"]
    weights_folder.remove(tmp_path, "efficientnet_lite0")

    assert weights.add_bundled(tmp_path) == []
    assert weights_folder.installed(tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "code", "reason"),
    [
        (
            lambda state: {k: v for k, v in state.items() if k != "body.0.weight"},
            "unfitting_weights",
            "body.0.weight (16x3x3x3) is missing",
        ),
        (
            lambda state: state | {"body.0.weight": torch.zeros(2, 2)},
            "unfitting_weights",
            "body.0.weight is 2x2, not 16x3x3x3",
        ),
        (
            lambda state: state | {"body.0.weight": state["body.0.weight"] * float("nan")},
            "unfitting_weights",
            "body.0.weight holds values that are not finite",
        ),
    ],
)
def test_weights_that_do_not_fit_leave_nothing(
    tmp_path: Path, state: dict[str, Tensor], spoil: object, code: str, reason: str
) -> None:
    save_file(spoil(state), tmp_path / "x.safetensors")  # type: ignore[operator]
    with pytest.raises(errors.MissingWeights) as raised:
        weights.add_file(tmp_path / "weights", tmp_path / "x.safetensors", "small", **FACTS)

    assert raised.value.code == code
    assert reason in str(raised.value)
    assert list((tmp_path / "weights").iterdir()) == []


def test_SEC3_a_pickle_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "ran"), "w"))  # type: ignore[return-value]

    (tmp_path / "x.pth").write_bytes(pickle.dumps({"w": Attack()}))
    torch.save({"w": Attack()}, tmp_path / "y.pth")
    for name in ("x.pth", "y.pth"):
        with pytest.raises(errors.MissingWeights) as raised:
            weights.add_file(tmp_path / "weights", tmp_path / name, "small", **FACTS)
        assert raised.value.code == "unreadable_weights"
    assert not (tmp_path / "ran").exists()


def test_what_is_not_known_is_asked_for(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(errors.MissingWeights, match="--network"):
        weights.add_file(tmp_path / "weights", tmp_path / "x.safetensors")
    with pytest.raises(errors.MissingWeights, match="--mean and --std and --image-size and --resize"):
        weights.add_file(tmp_path / "weights", tmp_path / "x.safetensors", "small")
    with pytest.raises(errors.UnknownName):
        weights.add_file(tmp_path / "weights", tmp_path / "x.safetensors", "resnet19", **FACTS)


@pytest.mark.parametrize("name", ["resnet19", "../x", "timm_nothing_like_this"])
def test_an_unknown_network_has_no_weights(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.Failure) as raised:
        weights.add(tmp_path, name)
    assert isinstance(raised.value, errors.UnknownName | errors.MissingWeights)


def test_missing_and_damaged_weights_name_the_command(tmp_path: Path, state: dict[str, Tensor]) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(errors.MissingWeights, match="python -m ml weights add small"):
            weights.find(folder, "small")
    save_file(state, tmp_path / "x.safetensors")
    record = weights.add_file(tmp_path, tmp_path / "x.safetensors", "small", **FACTS)
    file = weights.file_of(tmp_path, record)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    with pytest.raises(errors.MissingWeights) as raised:
        weights.find(tmp_path, "small")
    assert raised.value.code == "damaged_weights"


# The command


def test_the_command_adds_lists_and_removes(
    tmp_path: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(state, tmp_path / "x.safetensors")
    folder = [f"--folder={tmp_path / 'data'}"]
    options = ["--network=small", "--mean=0.1,0.2,0.3", "--std=0.4,0.5,0.6", "--image-size=32", "--resize=squash"]
    assert command.main(["weights", "add", str(tmp_path / "x.safetensors"), *options, "--licence=MIT", *folder]) == 0
    assert capsys.readouterr().out == "small: file x.safetensors; licence MIT; 32 px, 0.7 MB\n"

    assert command.main(["weights", "list", "--json", *folder]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(entry["name"], entry["mean"], entry["licence"]) for entry in listed] == [("small", [0.1, 0.2, 0.3], "MIT")]

    assert command.main(["weights", "remove", "small", *folder]) == 0
    assert command.main(["weights", "remove", "small", *folder]) == 1
    assert command.main(["weights", "list", *folder]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [[], ["nowhere.pth"], ["resnet18", "--licence=MIT"], ["no_such_network"]])
def test_the_command_refuses_in_one_line(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["weights", "add", *arguments, f"--folder={tmp_path}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_data_folder_is_that_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENLL_DATA_DIR", str(tmp_path))
    assert commands.data_folder() == tmp_path
    monkeypatch.delenv("DENLL_DATA_DIR")
    assert commands.data_folder() == Path("data")


def test_bundled_weights_that_were_added_cost_no_import_of_torch(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    weights_folder.mark_bundled(folder, "efficientnet_lite0")
    arguments = ["weights", "add", "--bundled", f"--folder={tmp_path}"]
    code = f"import sys; from ml import __main__ as c; c.main({arguments}); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=250)

    assert weights_folder.installed(folder) == []
