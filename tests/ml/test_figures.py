"""Figures of a finished training: what they measure, for every method, and that drawing them is repeatable."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ml.data import image_store
from ml.data.dataset import UNKNOWN, LabeledImages, Truth
from ml.evaluation import attention, measure
from ml.method import Method
from ml.reports import backgrounds, label_figures, plots, report_data
from ml.reports.batch_runner import BatchRunner
from ml.scenes import generate
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import CLASSES, SIDE

MEAN = torch.full((3,), 0.5)


class ColumnReader(Method):
    """Predicts the class from the red of one column: the object is on the left, the background on the right."""

    def __init__(self, column: int) -> None:
        torch.nn.Module.__init__(self)
        self.column = column

    def logits(self, images: Tensor) -> Tensor:
        red = images[:, 0, 4, self.column]  # shades as in `halved`, normalised
        return -40 * (red[:, None] - torch.linspace(-1.0, 1.0, CLASSES)).square()


def halved(labels: Tensor, backgrounds: Tensor) -> tuple[Tensor, Tensor]:
    """Images whose left half shows the label and whose right half shows the background's number; exact masks."""
    shades = torch.linspace(0, 255, CLASSES).round().to(torch.uint8)
    pictures = torch.zeros(len(labels), SIDE, SIDE, 3, dtype=torch.uint8)
    pictures[:, :, : SIDE // 2] = shades[labels][:, None, None, None]
    pictures[:, :, SIDE // 2 :] = shades[backgrounds][:, None, None, None]
    masks = torch.zeros(len(labels), 1, SIDE, SIDE)
    masks[..., : SIDE // 2] = 1.0
    return pictures, masks


def test_reliance_is_one_if_only_the_background_is_read_and_zero_if_only_the_object_is() -> None:
    labels = torch.arange(40) % CLASSES
    pictures, masks = halved(labels, labels)
    results = []
    for column in (0, SIDE - 1):
        runner = BatchRunner(ColumnReader(column), MEAN, MEAN, torch.device("cpu"))
        images, generator = runner.normalize(pictures), torch.Generator().manual_seed(0)
        results.append(backgrounds.background_reliance(runner, images, masks, labels, CLASSES, generator))
    by_object, by_background = results
    assert by_object is not None
    assert by_background is not None

    assert by_object["accuracy"] == by_background["accuracy"] == 1.0
    assert by_object["swapped_accuracy"] == 1.0
    assert by_object["background_reliance"] == pytest.approx(0.0, abs=1e-6)
    assert by_background["swapped_accuracy"] == 0.0
    assert by_background["background_reliance"] > 0.95
    assert len(by_background["per_image"]) == 40
    assert min(by_background["per_class"]) > 0.9


def test_a_partner_is_of_another_class_and_all_others_come_up() -> None:
    labels = torch.tensor([2, 0, 0, 1, 2, 2, 0, 2])
    met: list[set[int]] = [set() for _ in labels]
    for seed in range(200):
        partner = backgrounds.choose_partners(labels, torch.Generator().manual_seed(seed))
        assert partner is not None
        assert bool((labels[partner] != labels).all())
        for row, other in enumerate(partner.tolist()):
            met[row].add(other)

    assert met == [set((labels != label).nonzero()[:, 0].tolist()) for label in labels]
    assert backgrounds.choose_partners(torch.zeros(5, dtype=torch.long), torch.Generator()) is None


def test_a_swapped_picture_keeps_its_object_and_shows_nothing_of_the_other_one() -> None:
    labels = torch.tensor([0, 3])
    pictures, masks = halved(labels, torch.tensor([1, 2]))
    images = pictures.permute(0, 3, 1, 2).float()
    masks[1] = masks[1].flip(2)  # the other object is on the right, its background on the left

    composed = backgrounds.swap_backgrounds(images, masks, images.flip(0), masks.flip(0))
    assert torch.equal(composed[0, :, :, : SIDE // 2], images[0, :, :, : SIDE // 2])
    left_of_other = float(images[1, 0, 0, 0])
    assert composed[0, 0, 0, SIDE - 1].item() == pytest.approx(left_of_other, rel=1e-4)


def test_confusion_and_reliability_count_every_prediction_once() -> None:
    labels = torch.tensor([0, 0, 1, 2])
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.0, 1.0, 0.0], [0.0, 0.4, 0.6]])

    assert label_figures.confusion(probabilities, labels) == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    bins = label_figures.reliability(probabilities, labels)
    assert sum(int(entry["count"] or 0) for entry in bins) == 4
    assert [entry["accuracy"] for entry in bins if entry["count"]] == [1.0, 0.0, 1.0, 1.0]


def test_a_loss_histogram_holds_every_loss_of_its_kind() -> None:
    losses = torch.tensor([0.1, 0.2, 3.0, 50.0])
    histogram = label_figures.loss_histogram(losses, torch.tensor([False, False, True, True]))

    assert sum(histogram["right"]) == sum(histogram["wrong"]) == 2
    assert histogram["mean"]["wrong"] > histogram["mean"]["right"]
    assert label_figures.loss_histogram(losses, torch.zeros(4, dtype=torch.bool))["mean"]["wrong"] is None


@pytest.fixture(scope="module")
def scenery() -> tuple[LabeledImages, Truth]:
    train, test = (
        generate.draw(96, seed=1, image_size=SIDE, noise="ordinary"),
        generate.draw(24, seed=2, image_size=SIDE),
    )
    images = LabeledImages(torch.from_numpy(train.images), torch.from_numpy(train.given_labels), generate.CLASSES)
    truth = Truth(torch.from_numpy(train.clean), torch.from_numpy(test.images), torch.from_numpy(test.clean))
    return images, truth


def finished(images: LabeledImages, spec: TrainingSpec, truth: Truth | None = None) -> Trainer:
    training = Trainer.build(spec, images, truth=truth, device="cpu", threads=1)
    for _ in training:
        pass
    return training


@pytest.mark.parametrize("method", ["ce", "dividemix", "denll"])
def test_every_method_has_all_figures_and_is_left_as_it_was(
    method: str,
    spec: Callable[..., TrainingSpec],
    scenery: tuple[LabeledImages, Truth],
    tmp_path: Path,
) -> None:
    images, truth = scenery
    training = finished(images, spec(method=method, epochs=2), truth)
    before = {name: tensor.clone() for name, tensor in training.method.state_dict().items()}
    assert truth.train_clean is not None
    assert truth.test_images is not None
    assert truth.test_labels is not None
    wrong = (training.labels != truth.train_clean).numpy().astype(np.int8)
    judged = report_data.JudgedImages("test", truth.test_images, truth.test_labels)
    training.method.train()  # as it is after a restore

    report = report_data.collect(training, images, judged, wrong=wrong, issues=training.label_issues())
    numbers = json.loads(json.dumps(report.numbers, allow_nan=False))
    drawn = plots.draw(numbers, report.pictures, tmp_path) if method == "denll" else list(plots.PLOTS)

    assert (numbers["own_mask"] is not None) == (method == "denll")
    assert (numbers["of"], numbers["labels"], numbers["rows"]) == ("test", "true", list(range(24)))
    assert sum(map(sum, numbers["confusion"])) == numbers["images"] == 24
    assert all(-1 <= value <= 1 for value in numbers["correlation"].values())
    assert 0 <= numbers["backgrounds"]["background_reliance"] <= 1
    assert numbers["loss_histogram"]["wrong_by"] == "truth"
    assert np.max(numbers["attention"][0]["grad_cam"]) == pytest.approx(1.0)
    assert set(plots.PLOTS) <= set(drawn)
    if method == "denll":
        for name in drawn:
            with Image.open(tmp_path / f"figure-{name}.png") as picture:
                assert picture.width > 200
            assert "<svg" in (tmp_path / f"figure-{name}.svg").read_text()
    after = training.method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_test_set_and_truth_the_numbers_name_what_was_judged_by(
    spec: Callable[..., TrainingSpec], labeled: LabeledImages
) -> None:
    unknown = Truth(None, None, None)
    training = finished(labeled, spec(epochs=2, validation_fraction=0.2))
    report = report_data.collect(
        training, labeled, report_data.choose_judged(training, labeled, unknown), issues=training.label_issues()
    )
    assert (report.numbers["of"], report.numbers["labels"]) == ("held_out", "given")
    assert report.numbers["rows"] == training.held_out.tolist()
    assert report.numbers["loss_histogram"]["wrong_by"] == "ranking"
    metrics = report_data.metrics(report.numbers)
    assert metrics["swapped_accuracy"] is None
    assert metrics["noisy_swapped_accuracy"] == report.numbers["backgrounds"]["swapped_accuracy"]

    nothing_held_out = finished(labeled, spec(epochs=1, validation_fraction=0.0))
    bare = report_data.collect(nothing_held_out, labeled, report_data.choose_judged(nothing_held_out, labeled, unknown))
    assert bare.numbers["loss_histogram"] is None
    assert "confusion" not in bare.numbers
    assert set(report_data.metrics(bare.numbers).values()) == {None}


def test_held_out_images_are_judged_by_what_is_known_of_them_and_no_loss_of_theirs_is_a_training_loss(
    spec: Callable[..., TrainingSpec], labeled: LabeledImages
) -> None:
    noise = {"kind": "symmetric", "rate": 0.5}
    training = finished(labeled, spec(epochs=1, validation_fraction=0.25, noise=noise))
    clean = labeled.labels.clone()
    clean[training.held_out[0]] = UNKNOWN
    judged = report_data.choose_judged(training, labeled, Truth(None, None, None), clean)
    assert judged is not None
    assert judged.rows is not None
    assert judged.rows.tolist() == training.held_out[1:].tolist()
    assert torch.equal(judged.labels, labeled.labels[judged.rows])
    assert not judged.noisy

    numbers = report_data.collect(training, labeled, judged, wrong=measure.wrong_labels(training.labels, clean)).numbers
    assert numbers["labels"] == "true"
    counted = sum(numbers["loss_histogram"]["right"]) + sum(numbers["loss_histogram"]["wrong"])
    assert counted == len(labeled) - len(training.held_out)


def test_numbers_without_a_figure_draw_nothing(tmp_path: Path) -> None:
    numbers = {"classes": ["a", "b"], "loss_histogram": None, "transition": None, "noise_rate": None}

    assert plots.draw(numbers, np.empty((0, 8, 8, 3), np.uint8), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_same_numbers_draw_the_same_bytes_and_names_are_no_markup(tmp_path: Path) -> None:
    numbers = {"classes": ["$\\frac{", "<b>&"], "confusion": [[3, 1], [0, 2]]}
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        assert plots.draw(numbers, np.empty((0, 8, 8, 3), np.uint8), folder) == ["confusion"]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert "<b>" not in (tmp_path / "one" / "figure-confusion.svg").read_text()


def test_judged_images_are_bounded_by_speed_and_spread_evenly(
    spec: Callable[..., TrainingSpec], labeled: LabeledImages
) -> None:
    training = finished(labeled, spec(epochs=1))
    runner = BatchRunner(training.picture_method(), training.mean, training.std, training.device)
    assert report_data.FEWEST <= report_data.affordable_images(runner, labeled.images) <= report_data.MOST
    assert image_store.evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert image_store.evenly(3, 10).tolist() == [0, 1, 2]


def test_nothing_that_starts_a_job_imports_matplotlib() -> None:
    script = (
        "import sys; import worker.children.train, worker.children.publish, ml.__main__, ml.reports.report_data; "
        "sys.exit('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_grad_cam_of_a_pooled_linear_network_is_its_class_activation(
    spec: Callable[..., TrainingSpec], labeled: LabeledImages
) -> None:
    """Selvaraju et al. 2017, section 3.1: there the mean gradients are the classifier's weights."""
    method = finished(labeled, spec(epochs=1)).method.eval()
    images = torch.randn(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(6) % CLASSES
    with torch.no_grad():
        activation = attention.class_activation(method, images, classes)
    weighed = attention.grad_cam(method, images, classes)

    assert activation is not None
    assert weighed is not None
    torch.testing.assert_close(weighed, activation, rtol=1e-4, atol=1e-5)
