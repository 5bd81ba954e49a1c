"""`make demo`: the whole main job through the public API, in three minutes on two cores.

Draws pictures whose wrong labels follow the scene, uploads them, trains DeNLL beside plain cross-entropy, predicts with
a mask, and holds what the service found against what was planted. It is a client like any other: from `ml` it takes
only the generator of pictures, never anything that trains.

`DENLL_URL` and `DENLL_API_KEY` point it at a service that is already running; otherwise it uses, or starts, the one on
loopback.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

from ml import scenes

FOLDER = Path("demo")
SEED = 1
TRAIN, TEST, NOISE_RATE = 2400, 600, 0.4
EPOCHS = 10
START_S, READY_S = 60.0, 120.0
BAR = 28
SHOWN = 256  # pixels a side of the pictures it writes


@dataclass(frozen=True)
class Planted:
    """What the demo knows and the service does not learn from."""

    clean: dict[str, str]  # picture -> true class, of the training pictures
    given: dict[str, str]

    @property
    def wrong(self) -> set[str]:
        return {path for path, label in self.given.items() if label != self.clean[path]}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    url = os.environ.get("DENLL_URL", f"http://127.0.0.1:{os.environ.get('DENLL_PORT', '8000')}")
    key = os.environ.get("DENLL_API_KEY") or os.environ.get("DENLL_ADMIN_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx2.Client(base_url=url, headers=headers, timeout=60.0) as api, service(api):
        archive, planted = draw()
        dataset = upload(api, archive)
        job = train(api, dataset)
        report(api, dataset, job, planted)


@contextlib.contextmanager
def service(api: httpx2.Client) -> Iterator[None]:
    """The service at that address; started for the length of the demo if none answers."""
    named = "DENLL_URL" in os.environ
    if named and not waited_for(api):
        sys.exit(f"No service answers at {api.base_url}.")
    if named or answers(api):
        print(f"Using the service at {api.base_url}")
        yield
        return
    print("Starting the service ...", flush=True)
    log = (FOLDER / "service.log").open("w")
    process = subprocess.Popen([sys.executable, "-m", "worker.embedded"], stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_S
        while not answers(api):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"The service did not start; see {log.name}:\n{Path(log.name).read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        log.close()


def waited_for(api: httpx2.Client) -> bool:
    """Whether it answers within the time that a start may take: containers may be up before their processes listen."""
    deadline = time.monotonic() + START_S
    while not (there := answers(api)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return there


def answers(api: httpx2.Client) -> bool:
    try:
        return api.get("/readyz").status_code == httpx2.codes.OK
    except httpx2.TransportError:
        return False


def draw() -> tuple[Path, Planted]:
    path = FOLDER / "scenes.zip"
    scenes.write_archive(path, train=TRAIN, test=TEST, seed=SEED, noise="confounded", noise_rate=NOISE_RATE)
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("train.csv"), "utf-8")))
    planted = Planted({r["file"]: r["clean"] for r in rows}, {r["file"]: r["label"] for r in rows})
    share = len(planted.wrong) / len(rows)
    print(f"Drew {TRAIN} pictures in {len(scenes.CLASSES)} classes; {share:.0%} of the labels are wrong: the scene's.")
    return path, planted


def upload(api: httpx2.Client, archive: Path) -> dict[str, Any]:
    fields = {"name": "scenes", "label_column": "label", "clean_column": "clean"}
    with archive.open("rb") as file:
        dataset = ok(api.post("/datasets", data=fields, files={"file": (archive.name, file, "application/zip")}))
    deadline = time.monotonic() + READY_S
    while dataset["status"] == "ingesting" and time.monotonic() < deadline:
        time.sleep(0.2)
        dataset = ok(api.get(f"/datasets/{dataset['id']}"))
    if dataset["status"] != "ready":
        sys.exit(f"The data set is {dataset['status']}: {dataset}")
    print(f"Uploaded and checked: data set {dataset['id']}")
    return dataset


def train(api: httpx2.Client, dataset: dict[str, Any]) -> dict[str, Any]:
    """DeNLL and, on the same split, seed and epochs, plain cross-entropy."""
    request = {
        "dataset_id": dataset["id"],
        "name": "demo",
        "method": "denll",
        "params": preset(api, "confounded"),
        "network": "small",
        "epochs": EPOCHS,
        "batch_size": 64,
        "image_size": 32,
        "learning_rate": 0.1,
        "augmentation": "flip",
        "seed": SEED,
        "compare_with": ["ce"],
    }
    job = ok(api.post("/jobs", json=request))
    jobs = [job["id"], *(other["id"] for other in job["comparison"] if other["id"] != job["id"])]
    for job_id in jobs:
        follow(api, job_id)
    return ok(api.get(f"/jobs/{job['id']}"))


def preset(api: httpx2.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ok(api.get("/methods/denll"))["presets"][name]
    return found


def follow(api: httpx2.Client, job_id: str) -> None:
    """A progress bar fed by the job's event stream."""
    method = ok(api.get(f"/jobs/{job_id}"))["method"]
    progress: dict[str, Any] = {}
    metric: dict[str, Any] = {}
    with api.stream("GET", f"/jobs/{job_id}/events", timeout=None) as stream:
        for kind, data in events(stream):
            if kind == "progress":
                progress = data
            elif kind == "metric":
                metric = data
            show(method, progress, metric)
            if kind == "done":
                break
    job = ok(api.get(f"/jobs/{job_id}"))
    print(f"\n  {method}: {job['status']} after {job['run_seconds']:.0f} s")
    if job["status"] != "succeeded":
        sys.exit(f"The job {job['status']}: {job['error']}")


def events(stream: httpx2.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    kind, data = "message", ""
    for line in stream.iter_lines():
        if line.startswith("event:"):
            kind = line[6:].strip()
        elif line.startswith("data:"):
            data += line[5:].strip()
        elif not line and data:
            yield kind, json.loads(data)
            kind, data = "message", ""


def show(method: str, progress: dict[str, Any], metric: dict[str, Any]) -> None:
    if not sys.stdout.isatty():
        return  # a log wants lines, not frames; the last line of a job is printed by `follow`
    fraction = progress.get("fraction") or 0.0
    bar = "█" * round(BAR * fraction) + "·" * (BAR - round(BAR * fraction))
    words = [f"\r  {method:6} {bar} epoch {progress.get('epoch', 0):>2}/{progress.get('epochs', EPOCHS)}"]
    if metric:
        words.append(f"loss {metric['train_loss']:.3f}")
        words += [f"clean test {metric['test']['answer']['accuracy']:.1%}"] if metric["test"] else []
    if progress.get("images_per_second"):
        words.append(f"{progress['images_per_second']:.0f} images/s")
    if progress.get("eta_seconds") is not None:
        words.append(f"{progress['eta_seconds']:.0f} s left")
    print("  ".join(words).ljust(118), end="", flush=True)


def report(api: httpx2.Client, dataset: dict[str, Any], job: dict[str, Any], planted: Planted) -> None:
    accuracy = {other["method"]: other["metrics"]["test_accuracy"]["last"] for other in job["comparison"]}
    accuracy[job["method"]] = job["metrics"]["test_accuracy"]["last"]
    print("\nOn clean test pictures, last epoch:")
    for method, value in sorted(accuracy.items(), key=lambda item: item[1]):
        print(f"  {method:6} {value:6.1%}")
    caught(api, job, planted)
    overlay(api, dataset, job)


def caught(api: httpx2.Client, job: dict[str, Any], planted: Planted) -> None:
    table = api.get(f"/jobs/{job['id']}/label-issues", headers={"Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(table.raise_for_status().text)))
    flagged = {r["path"] for r in rows if r["is_label_issue"].lower() in ("true", "1")}
    worst = [r["path"] for r in rows][: len(planted.wrong)]
    hit, top = len(flagged & planted.wrong), len(set(worst) & planted.wrong)
    print(f"\nOf {len(planted.wrong)} planted label errors:")
    print(f"  {hit} are among the {len(flagged)} labels it calls wrong")
    guessed = len(planted.wrong) ** 2 // len(planted.given)
    print(f"  {top} are among the {len(worst)} lowest label scores (guessing would find {guessed})")


def overlay(api: httpx2.Client, dataset: dict[str, Any], job: dict[str, Any]) -> None:
    """One prediction as JSON, and pictures to look at."""
    page = ok(api.get(f"/datasets/{dataset['id']}/images", params={"split": "test", "limit": 4}))
    references = [f"dataset:{dataset['id']}/{item['index']}" for item in page["items"]]
    query = [("model", job["model_id"]), *(("image", reference) for reference in references)]
    answer = ok(api.get("/predict", params=query))
    print("\nPredictions with masks, on pictures it has not seen:")
    for item, reference, prediction in zip(page["items"], references, answer["predictions"], strict=True):
        centre = prediction["mask"]["gaussian"]
        picture = api.get("/predict", params={"model": job["model_id"], "image": reference, "format": "overlay"})
        path = FOLDER / f"overlay-{item['index']}.png"
        with Image.open(io.BytesIO(picture.raise_for_status().content)) as small:
            small.resize((SHOWN, SHOWN), Image.Resampling.NEAREST).save(path)
        where = f"({centre['cx']:.1f}, {centre['cy']:.1f})"
        truth = item["given_label"]  # the labels of the test pictures are true
        print(f"  {prediction['label']:9} {prediction['score']:4.0%}  is a {truth:9}  mask at {where}  {path}")
    print(
        f"\nEverything is kept: job {job['id']}, model {job['model_id']}. `make run` serves it with a page to look at."
    )


def ok(response: httpx2.Response) -> Any:
    if response.is_error:
        sys.exit(f"{response.request.method} {response.request.url.path}: {response.status_code} {response.text[:500]}")
    return response.json()


if __name__ == "__main__":
    main()
