"""Exports are read by the packages that they are made for. FiftyOne needs MongoDB: `test_exports` checks its layout."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision  # type: ignore[import-untyped]

from ml.formats.exporters import Format
from tests import pictures
from tests.ml.formats.exported import ImageLabels, correct, exported, labels_of, ready, unpacked

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-readers" / "bin" / "python"
CLASSES = ("cat", "dog, big", "日本 é", "01")
UPLOADS = {
    "split folders": pictures.zipped(pictures.class_folders(CLASSES, splits=("train", "test"))),
    "class folders": pictures.zipped(pictures.class_folders(CLASSES)),
    "table": pictures.zipped(pictures.with_table(12, folder="some images")),
}


@pytest.fixture(scope="module", params=UPLOADS)
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with two versions of its labels."""
    folder = tmp_path_factory.mktemp("ready") / "set"
    ready(folder, UPLOADS[request.param])
    correct(folder)
    return folder


@pytest.fixture
def unpack(dataset: Path, tmp_path: Path) -> Callable[[Format], Path]:
    """Exports version 2 and unpacks it; a tar stays as it is."""

    def export(format: Format) -> Path:
        archive = exported(dataset, format, 2)
        target = tmp_path / format
        if format == "webdataset":
            target = target.with_suffix(".tar")
            target.write_bytes(archive)
            return target
        for name, data in unpacked(archive).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(data)
        return target

    return export


@pytest.mark.skipif(not PYTHON.exists(), reason="`make test` builds .venv-readers, the environment of other packages")
@pytest.mark.parametrize("format", ["huggingface", "labelstudio", "webdataset", "coco", "csv"])
def test_a_package_reads_its_format(format: Format, dataset: Path, unpack: Callable[[Format], Path]) -> None:
    folder = unpack(format)
    script = Path(__file__).with_name("packages_script.py")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "home"), "PATH": os.environ["PATH"]}

    done = subprocess.run(
        [PYTHON, script, format, folder], env=offline, capture_output=True, text=True, timeout=250, check=False
    )

    assert done.returncode == 0, done.stderr
    rows: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    assert {digest: tuple(pair) for digest, pair in rows.items()} == without_escapes(format, labels_of(dataset, 2))


def without_escapes(format: Format, labels: ImageLabels) -> ImageLabels:
    """As other programs read them: in CSV a label that a spreadsheet would run has an apostrophe before it (C3)."""
    if format != "csv":
        return labels
    return {
        digest: (split, f"'{label}" if label and label[:1] == "=" else label)
        for digest, (split, label) in labels.items()
    }


def test_an_export_trains_in_torchvision_with_the_same_labels(dataset: Path, unpack: Callable[[Format], Path]) -> None:
    export = unpack("imagefolder")
    root = export / "train" if (export / "train").is_dir() else export
    to_tensor = torchvision.transforms.Compose(
        [torchvision.transforms.Resize((8, 8)), torchvision.transforms.ToTensor()]
    )
    images = torchvision.datasets.ImageFolder(str(root), to_tensor)
    read = {digest(path): ("train", images.classes[label]) for path, label in images.samples}
    assert read == {name: pair for name, pair in labels_of(dataset, 2).items() if pair[0] == "train"}

    pixels = torch.stack([image for image, _ in images]).flatten(1)
    labels = torch.nn.functional.one_hot(torch.tensor(images.targets)).float()
    weights = torch.linalg.lstsq(pixels, labels).solution  # a linear classifier
    assert (pixels @ weights).argmax(1).tolist() == images.targets


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
