"""What a client of the service does, in plain HTTP: wait for it, upload, train, watch, predict.

`DENLL_URL` and `DENLL_API_KEY` point it at a service that is already running; otherwise it uses, or starts, the one on
loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2

START_S, READY_S = 300.0, 300.0
BAR = 28
IMAGES_PER_CALL = 32


@contextlib.contextmanager
def connected(folder: Path) -> Iterator[httpx2.Client]:
    """A client of a service that answers; one that it had to start writes its log into `folder`."""
    url = os.environ.get("DENLL_URL", f"http://127.0.0.1:{os.environ.get('DENLL_PORT', '8000')}")
    key = os.environ.get("DENLL_API_KEY") or os.environ.get("DENLL_ADMIN_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx2.Client(base_url=url, headers=headers, timeout=60.0) as api, service(api, folder):
        yield api


@contextlib.contextmanager
def service(api: httpx2.Client, folder: Path) -> Iterator[None]:
    """The service at that address; started for the length of the demo if none answers."""
    named = "DENLL_URL" in os.environ
    if named and not waited_for(api):
        sys.exit(f"No service answers at {api.base_url}.")
    if named or answers(api):
        print(f"Using the service at {api.base_url}")
        yield
        return
    print("Starting the service ...", flush=True)
    log = (folder / "service.log").open("w")
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


def upload(api: httpx2.Client, archive: Path) -> dict[str, Any]:
    """The data set, once it is checked and ready."""
    fields = {"name": archive.stem, "label_column": "label", "clean_column": "clean"}
    with archive.open("rb") as file:
        dataset: dict[str, Any] = ok(
            api.post("/datasets", data=fields, files={"file": (archive.name, file, "application/zip")})
        )
    deadline = time.monotonic() + READY_S
    while dataset["status"] == "ingesting" and time.monotonic() < deadline:
        time.sleep(0.2)
        dataset = ok(api.get(f"/datasets/{dataset['id']}"))
    if dataset["status"] != "ready":
        sys.exit(f"The data set is {dataset['status']}: {dataset}")
    return dataset


def train(api: httpx2.Client, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Submit a job and wait for it and its comparisons; the finished jobs by method."""
    job = ok(api.post("/jobs", json=request))
    ids = [job["id"], *(other["id"] for other in job["comparison"] or [] if other["id"] != job["id"])]
    jobs = [wait_for_end(api, job_id) for job_id in ids]
    return {job["method"]: job for job in jobs}


def predict(api: httpx2.Client, model: str, references: Sequence[str]) -> list[dict[str, Any]]:
    """One prediction for each `dataset:<id>/<path>`."""
    predictions: list[dict[str, Any]] = []
    for start in range(0, len(references), IMAGES_PER_CALL):
        images = [("image", reference) for reference in references[start : start + IMAGES_PER_CALL]]
        predictions += ok(api.get("/predict", params=[("model", model), *images]))["predictions"]
    return predictions


def predict_with_mask(api: httpx2.Client, model: str, picture: bytes) -> tuple[dict[str, Any], bytes]:
    """A prediction for a new PNG, and the picture with its mask drawn over it."""
    headers = {"Content-Type": "image/png"}
    prediction: dict[str, Any] = ok(api.post("/predict", content=picture, headers=headers, params={"model": model}))[
        "predictions"
    ][0]
    if prediction.get("mask") is None:
        return prediction, picture
    overlay = api.post("/predict", content=picture, headers=headers, params={"model": model, "format": "overlay"})
    return prediction, overlay.raise_for_status().content


def wait_for_end(api: httpx2.Client, job_id: str) -> dict[str, Any]:
    """Draw a progress bar from the job's event stream until the job ends; the finished job."""
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
    job: dict[str, Any] = ok(api.get(f"/jobs/{job_id}"))
    print(f"\n  {method}: {job['status']} after {job['run_seconds']:.0f} s")
    if job["status"] != "succeeded":
        sys.exit(f"The job {job['status']}: {job['error']}")
    return job


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
        return  # a log has no use for frames; the last line of a job is printed by `wait_for_end`
    fraction = progress.get("fraction") or 0.0
    bar = "█" * round(BAR * fraction) + "·" * (BAR - round(BAR * fraction))
    words = [f"\r  {method:6} {bar} epoch {progress.get('epoch', 0):>2}/{progress.get('epochs', '?')}"]
    if metric:
        words.append(f"loss {metric['train_loss']:.3f}")
        words += [f"clean test {metric['test']['answer']['accuracy']:.1%}"] if metric["test"] else []
    if progress.get("images_per_second"):
        words.append(f"{progress['images_per_second']:.0f} images/s")
    if progress.get("eta_seconds") is not None:
        words.append(f"{progress['eta_seconds']:.0f} s left")
    print("  ".join(words).ljust(118), end="", flush=True)


def ok(response: httpx2.Response) -> Any:
    if response.is_error:
        sys.exit(f"{response.request.method} {response.request.url.path}: {response.status_code} {response.text[:500]}")
    return response.json()
