"""`make demo`: two acts through the public API, in three minutes on two cores.

Act one is what anybody does with bad labels: upload, train, be told which labels are wrong, predict. Act two is what
the method is for: labels that are wrong because of what is *behind* the object. Plain cross-entropy follows the scene,
DeNLL does not. It is a client like any other: from `ml` it takes only the generator of pictures, nothing that trains.
"""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from examples import client
from ml.scenes import generate

FOLDER = Path("demo")
TRAIN, TEST, NOISE_RATE = {"ordinary": 1800, "confounded": 2400}, 300, 0.4
SEED, EXHIBIT_SEED = 1, 7
EXHIBITS, BEFORE = ("star", "square", "moon"), ("sea", "desert")  # objects, and the two scenes that each is shown with
SHOWN = 192  # pixels a side of the pictures it writes


# What both acts ask for beside a data set. The service chooses the rest, how DeNLL reads such pictures among it.
ASKED: dict[str, Any] = {"method": "denll", "epochs": 10, "augmentation": "flip", "learning_rate": 0.1, "seed": SEED}


@dataclass(frozen=True)
class Planted:
    """What the demo knows and the service does not learn from: true class and scene of all pictures, labels given."""

    clean: dict[str, str]
    scene: dict[str, str]
    given: dict[str, str]  # of the training pictures

    @property
    def wrong(self) -> set[str]:
        return {path for path, label in self.given.items() if label != self.clean[path]}

    @property
    def test(self) -> list[str]:
        return [path for path in self.clean if path not in self.given]

    def elsewhere(self, path: str) -> bool:
        """Whether a picture shows another scene than its class's own."""
        return generate.SCENES.index(self.scene[path]) != generate.CLASSES.index(self.clean[path])


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with client.connected(FOLDER) as api:
        wrong_at_random(api)
        wrong_by_scene(api)
    print("\nEverything is kept. `make run` serves it with a page to look at.")


def wrong_at_random(api: httpx2.Client) -> None:
    print("\nAct one. Careless labels: upload, train, find the errors, predict.")
    archive, planted = drawn("ordinary")
    dataset = client.upload(api, archive)
    job = client.train(api, {"dataset_id": dataset["id"], "name": "act one", **ASKED})["denll"]
    last = job["metrics"]["test_accuracy"]["last"]
    print(f"  {last:.1%} of the test pictures are told rightly, though every third label was wrong.")
    errors_found(api, job, planted)
    path = planted.test[0]
    (said,) = client.predict(api, job["model_id"], [f"dataset:{dataset['id']}/{path}"])
    centre = said["mask"]["gaussian"]
    print(
        f"  {path}: {said['label']} ({said['score']:.0%}), looking at ({centre['cx']:.0f}, {centre['cy']:.0f}). "
        f"It is a {planted.clean[path]}."
    )


def wrong_by_scene(api: httpx2.Client) -> None:
    print("\nAct two. Labels that name the scene: who learns the object?")
    archive, planted = drawn("confounded")
    dataset = client.upload(api, archive)
    request = {"dataset_id": dataset["id"], "name": "act two", **ASKED, "compare_with": ["ce"]}
    jobs = client.train(api, request)
    print("\n  right on test pictures    any scene    another class's scene")
    for method in ("ce", "denll"):
        right = hits(api, jobs[method]["model_id"], dataset, planted)
        elsewhere = [hit for path, hit in right.items() if planted.elsewhere(path)]
        print(f"  {method:22} {np.mean(list(right.values())):12.1%} {np.mean(elsewhere):24.1%}")
    errors_found(api, jobs["denll"], planted)
    exhibit(api, {method: job["model_id"] for method, job in jobs.items()})


def drawn(noise: generate.Noise) -> tuple[Path, Planted]:
    path = FOLDER / f"{noise}.zip"
    generate.write_archive(path, train=TRAIN[noise], test=TEST, seed=SEED, noise=noise, noise_rate=NOISE_RATE)
    with zipfile.ZipFile(path) as archive:
        train, truth = (
            list(csv.DictReader(io.TextIOWrapper(archive.open(table), "utf-8"))) for table in ("train.csv", "truth.csv")
        )
    planted = Planted(
        {row["file"]: row["clean"] for row in truth},
        {row["file"]: row["scene"] for row in truth},
        {row["file"]: row["label"] for row in train},
    )
    share = len(planted.wrong) / len(train)
    print(f"  Drew {len(train)} pictures of {len(generate.CLASSES)} classes; {share:.0%} of their labels are wrong.")
    return path, planted


def errors_found(api: httpx2.Client, job: dict[str, Any], planted: Planted) -> None:
    table = api.get(f"/jobs/{job['id']}/label-issues", headers={"Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(table.raise_for_status().text)))
    wrong = planted.wrong
    flagged = {row["path"] for row in rows if row["is_label_issue"].lower() in ("true", "1")}
    worst = {row["path"] for row in rows[: len(wrong)]}
    print(
        f"  Of {len(wrong)} wrong labels {len(worst & wrong)} are among the {len(wrong)} most suspicious "
        f"(guessing finds {len(wrong) ** 2 // len(rows)}); of the {len(flagged)} it flags, {len(flagged & wrong)} are."
    )


def hits(api: httpx2.Client, model: str, dataset: dict[str, Any], planted: Planted) -> dict[str, bool]:
    """Whether each test picture is told rightly."""
    references = [f"dataset:{dataset['id']}/{path}" for path in planted.test]
    said = client.predict(api, model, references)
    return {path: one["label"] == planted.clean[path] for path, one in zip(planted.test, said, strict=True)}


def exhibit(api: httpx2.Client, models: dict[str, str]) -> None:
    """The same object before two scenes: what each model says, and a picture of where DeNLL looks."""
    print(f"\n  the same object before{'':11}" + "".join(f"{method:>10}" for method in sorted(models)))
    sheet = Image.new("RGB", (SHOWN * len(BEFORE), SHOWN * len(EXHIBITS)))
    for row, name in enumerate(EXHIBITS):
        shown = generate.before_every_scene(generate.CLASSES.index(name), seed=EXHIBIT_SEED + row)
        for column, scene in enumerate(BEFORE):
            picture = io.BytesIO()
            Image.fromarray(shown.images[generate.SCENES.index(scene)]).save(picture, "PNG")
            seen = {method: client.see(api, model, picture.getvalue()) for method, model in models.items()}
            print(f"  {name:12} {scene:20}" + "".join(f"{seen[method][0]['label']:>10}" for method in sorted(models)))
            with Image.open(io.BytesIO(seen["denll"][1])) as small:
                large = small.convert("RGB").resize((SHOWN, SHOWN), Image.Resampling.NEAREST)
            sheet.paste(large, (SHOWN * column, SHOWN * row))
    sheet.save(FOLDER / "two-scenes.png")
    print(f"  Where DeNLL looks: {FOLDER / 'two-scenes.png'}")


if __name__ == "__main__":
    main()
