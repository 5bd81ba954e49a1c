"""`make demo`: two acts through the public API, in three minutes on two cores.

Act one uploads, trains, reads which labels are wrong, and predicts. In act two the wrong labels follow the background:
cross-entropy learns the scene, DeNLL does not. With a pretrained backbone its pictures are as large as photographs, and
the service chooses how to train. The demo is a client like any other: from `ml` it imports only the generator of
pictures.
"""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
from PIL import Image

from examples import client
from ml.scenes import generate

FOLDER = Path("demo")
SMALLEST = "--smallest" in sys.argv  # shows that the demo runs, not what it shows
TRAIN = {"ordinary": 120, "confounded": 120} if SMALLEST else {"ordinary": 1800, "confounded": 2400}
TEST, NOISE_RATE = 24 if SMALLEST else 300, 0.4
EPOCHS = 1 if SMALLEST else 10
SEED, DRAWING_SEED = 1, 7
OBJECTS, SCENES = ("star", "square", "moon"), ("sea", "desert")  # objects, and the two scenes behind each
SIDE = 192  # pixels a side of the pictures it writes
BACKBONE = "efficientnet_lite0"  # which a service trains where nobody chooses and it is installed


# The request of both acts without a backbone, without the data set. The service chooses the rest, the preset of DeNLL
# included.
REQUEST: dict[str, Any] = {
    "method": "denll",
    "network": "small",  # from scratch: pictures this small are drawings, and three minutes are all there is
    "epochs": EPOCHS,
    "augmentation": "flip",
    "learning_rate": 0.1,
    "seed": SEED,
}


class Pictures(NamedTuple):
    """What is drawn, and how a service learns from it."""

    side: int  # pixels
    sizes: tuple[float, float]  # of objects, least and largest, as shares of the side
    train: dict[str, int]  # number of training pictures by kind of noise
    request: dict[str, Any]  # of a job, without the data set


DRAWINGS = Pictures(32, generate.ALIKE, TRAIN, REQUEST)
LARGE = Pictures(96, (0.3, 0.6), {"confounded": 120 if SMALLEST else 1200}, {"seed": SEED})


@dataclass(frozen=True)
class GroundTruth:
    """What the demo knows and the service does not: true class and scene by path, and the labels it was given."""

    clean: dict[str, str]
    scene: dict[str, str]
    given_labels: dict[str, str]  # of the training pictures

    @property
    def wrong(self) -> set[str]:
        return {path for path, label in self.given_labels.items() if label != self.clean[path]}

    @property
    def test(self) -> list[str]:
        return [path for path in self.clean if path not in self.given_labels]

    def is_on_other_scene(self, path: str) -> bool:
        """Whether a picture shows another scene than its class's own."""
        return generate.SCENES.index(self.scene[path]) != generate.CLASSES.index(self.clean[path])


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with client.connected(FOLDER) as api:
        act_on_random_noise(api)
        act_on_confounded_noise(api)
    print("\nThe data stays. `make run` serves it, with a page to look at.")


def act_on_random_noise(api: httpx2.Client) -> None:
    print("\nAct one. Labels wrong at random: upload, train, find the errors, predict.")
    archive, truth = draw("ordinary", DRAWINGS)
    dataset = client.upload(api, archive)
    job = client.train(api, {"dataset_id": dataset["id"], "name": "act one", **REQUEST})["denll"]
    last = job["metrics"]["test_accuracy"]["last"]
    print(f"  {last:.1%} of the test pictures are classified rightly, though every third label was wrong.")
    print_errors_found(api, job, truth)
    path = truth.test[0]
    (prediction,) = client.predict(api, job["model_id"], [f"dataset:{dataset['id']}/{path}"])
    centre = prediction["mask"]["gaussian"]
    print(
        f"  {path}: {prediction['label']} ({prediction['score']:.0%}), with its mask centred at "
        f"({centre['cx']:.0f}, {centre['cy']:.0f}). It is a {truth.clean[path]}."
    )


def act_on_confounded_noise(api: httpx2.Client) -> None:
    print("\nAct two. Labels that name the scene: who learns the object?")
    pictures = LARGE if has_default_backbone(api) else DRAWINGS
    archive, truth = draw("confounded", pictures)
    dataset = client.upload(api, archive)
    request = {"dataset_id": dataset["id"], "name": "act two", **pictures.request, "compare_with": ["ce"]}
    jobs = client.train(api, request)
    print("\n  right on test pictures    any scene    another class's scene")
    for method in ("ce", "denll"):
        right = is_right(api, jobs[method]["model_id"], dataset, truth)
        elsewhere = [hit for path, hit in right.items() if truth.is_on_other_scene(path)]
        print(f"  {method:22} {np.mean(list(right.values())):12.1%} {np.mean(elsewhere):24.1%}")
    print_errors_found(api, jobs["denll"], truth)
    draw_masks(api, {method: job["model_id"] for method, job in jobs.items()}, pictures)


def has_default_backbone(api: httpx2.Client) -> bool:
    networks = client.ok(api.get("/networks", params={"limit": 200}))["items"]
    return any(network["name"] == BACKBONE and network["weights"] for network in networks)


def draw(noise: generate.Noise, pictures: Pictures) -> tuple[Path, GroundTruth]:
    path = FOLDER / f"{noise}.zip"
    generate.write_archive(
        path,
        train=pictures.train[noise],
        test=TEST,
        seed=SEED,
        image_size=pictures.side,
        sizes=pictures.sizes,
        noise=noise,
        noise_rate=NOISE_RATE,
    )
    with zipfile.ZipFile(path) as archive:
        train, every = (
            list(csv.DictReader(io.TextIOWrapper(archive.open(name), "utf-8"))) for name in ("train.csv", "truth.csv")
        )
    truth = GroundTruth(
        {row["file"]: row["clean"] for row in every},
        {row["file"]: row["scene"] for row in every},
        {row["file"]: row["label"] for row in train},
    )
    share = len(truth.wrong) / len(train)
    print(f"  Drew {len(train)} pictures of {len(generate.CLASSES)} classes; {share:.0%} of their labels are wrong.")
    return path, truth


def print_errors_found(api: httpx2.Client, job: dict[str, Any], truth: GroundTruth) -> None:
    table = api.get(f"/jobs/{job['id']}/label-issues", headers={"Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(table.raise_for_status().text)))
    wrong = truth.wrong
    flagged = {row["path"] for row in rows if row["is_label_issue"].lower() in ("true", "1")}
    worst = {row["path"] for row in rows[: len(wrong)]}
    print(
        f"  Of {len(wrong)} wrong labels {len(worst & wrong)} are among the {len(wrong)} most suspicious "
        f"(guessing finds {len(wrong) ** 2 // len(rows)}); of the {len(flagged)} it flags, {len(flagged & wrong)} are."
    )


def is_right(api: httpx2.Client, model: str, dataset: dict[str, Any], truth: GroundTruth) -> dict[str, bool]:
    """Whether each test picture is classified rightly."""
    references = [f"dataset:{dataset['id']}/{path}" for path in truth.test]
    predictions = client.predict(api, model, references)
    return {path: one["label"] == truth.clean[path] for path, one in zip(truth.test, predictions, strict=True)}


def draw_masks(api: httpx2.Client, models: dict[str, str], pictures: Pictures) -> None:
    """The same object on two scenes: the prediction of each model, and a picture of DeNLL's masks."""
    print(f"\n  the same object on{'':15}" + "".join(f"{method:>10}" for method in sorted(models)))
    sheet = Image.new("RGB", (SIDE * len(SCENES), SIDE * len(OBJECTS)))
    for row, name in enumerate(OBJECTS):
        scenes = generate.before_every_scene(
            generate.CLASSES.index(name), seed=DRAWING_SEED + row, image_size=pictures.side, sizes=pictures.sizes
        )
        for column, scene in enumerate(SCENES):
            picture = io.BytesIO()
            Image.fromarray(scenes.images[generate.SCENES.index(scene)]).save(picture, "PNG")
            results = {
                method: client.predict_with_mask(api, model, picture.getvalue()) for method, model in models.items()
            }
            print(
                f"  {name:12} {scene:20}" + "".join(f"{results[method][0]['label']:>10}" for method in sorted(models))
            )
            with Image.open(io.BytesIO(results["denll"][1])) as small:
                large = small.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(large, (SIDE * column, SIDE * row))
    sheet.save(FOLDER / "two-scenes.png")
    print(f"  DeNLL's masks: {FOLDER / 'two-scenes.png'}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nEnded. A job that ran goes on when the service is started again.")
