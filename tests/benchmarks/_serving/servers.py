"""The servers under test: each a tree of processes that is started once, and stands still while another is measured.

A tree that is not under test is stopped (SIGSTOP), so that its polling costs nobody anything. CPU time is that of the
whole tree, read from the kernel.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import signal
import subprocess
import sys
import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from sqlalchemy import insert

from app.db.session import connect, transaction
from app.db.tables import Model as ModelRow
from app.settings import Settings
from app.storage import Storage
from ml.data.dataset import LabeledImages
from ml.serving import model_archive
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.benchmarks._serving.model import CLASSES, FREE, SIDE
from tests.servers import die_with_parent, eventually, free_port

ROOT = Path(__file__).parents[3]
PEERS = ROOT / ".venv-bench" / "bin" / "python"
TICKS = os.sysconf("SC_CLK_TCK")
START_S = 120.0


@dataclass
class Server:
    """A running server and where it takes pictures."""

    name: str
    port: int
    roots: list[subprocess.Popen[bytes]]
    paths: dict[str, str] = field(default_factory=lambda: {"multipart": "/predict"})

    def tree(self) -> list[int]:
        parents = _parents()
        pids = [process.pid for process in self.roots]
        for pid in pids:
            pids += [child for child, parent in parents.items() if parent == pid]
        return pids

    def cpu_seconds(self) -> float:
        """User and system time of all its processes that live, and of those that were waited for."""
        return sum(sum(map(int, _stat(pid)[11:15])) for pid in self.tree()) / TICKS

    def signal(self, number: signal.Signals) -> None:
        for pid in self.tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)


@dataclass(frozen=True)
class Outcome:
    """What the load generator saw of one server, and what that cost the server."""

    answers: int
    seconds: float
    p50_ms: float
    p99_ms: float
    problems: dict[str, int]
    otherwise: int  # answers with another label than expected
    cpu_ms: float  # of the whole tree, per answer of all stages

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds


ExpectedAnswer = tuple[bytes, int, str]  # a request, its status, its label


def drive(server: Server, requests: Sequence[ExpectedAnswer], *stages: tuple[int, int]) -> list[Outcome]:
    """For each stage (clients, requests) one outcome; the server is awake for as long as it takes."""
    encoded = [(b64encode(data).decode(), status, label) for data, status, label in requests]
    plan = {"port": server.port, "stages": stages, "requests": encoded}
    with server.awake():
        before = server.cpu_seconds()
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks._serving.load"],
            input=json.dumps(plan), stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True,
        )  # fmt: skip
        spent = server.cpu_seconds() - before
    cpu_ms = 1000 * spent / sum(count for _, count in stages)
    return [Outcome(cpu_ms=cpu_ms, **outcome) for outcome in json.loads(done.stdout)]


def request(kind: str, path: str, data: bytes) -> bytes:
    """A complete HTTP request with one picture, raw or as a browser's form sends it."""
    if kind == "raw":
        body, media = data, "image/jpeg"
    else:
        named = 'Content-Disposition: form-data; name="file"; filename="a.jpg"'
        head = f"--edge\r\n{named}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
        body, media = head + data + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: */*", f"Content-Type: {media}"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def pictures(count: int) -> list[bytes]:
    """JPEGs of 32 px, about a kilobyte each: a colour for each class under smooth noise."""
    random = np.random.default_rng(0)
    return [simplejpeg.encode_jpeg(_square(random, n % len(CLASSES)), quality=90) for n in range(count)]


def _square(random: np.random.Generator, label: int) -> np.ndarray:
    hues = np.random.default_rng(7).integers(0, 200, (len(CLASSES), 3))
    coarse = random.integers(0, 56, (8, 8, 3)) + hues[label]
    return np.kron(coarse, np.ones((SIDE // 8, SIDE // 8, 1))).astype(np.uint8)


def publish(folder: Path, network: str = "resnet18") -> None:
    """A model archive of `network` as it begins, which costs an answer as much as a trained one.

    Its biases are set so that pictures of different colours get different labels: an answer to another request shows.
    """
    random = np.random.default_rng(1)
    labels = torch.arange(2 * len(CLASSES)) % len(CLASSES)
    images = torch.from_numpy(np.stack([_square(random, int(label)) for label in labels]))
    spec = TrainingSpec(method="ce", network=network, image_size=SIDE, batch_size=len(CLASSES), precision="f32")
    training = Trainer.build(spec, LabeledImages(images, labels, CLASSES), device="cpu")
    bias = training.method.get_parameter("networks.0.classifier.bias")
    with torch.no_grad():
        bias.sub_(training.score(training.method.logits).mean(dim=0))
    model_archive.save(folder, training)


@contextlib.contextmanager
def ours(scratch: Path, model: Path | str, threads: int, inference: str = "worker.inference") -> Iterator[Server]:
    """The API process and the inference process, on a socket file as `make run` has them; no broker, no supervisor.

    Args:
        scratch: A folder for its data folder.
        model: The model's archive, or `FREE`.
        threads: Of the inference process.
        inference: The module that is run as the inference process.
    """
    data = scratch / f"ours-{uuid.uuid4().hex[:8]}"
    address, port = f"unix://{data}.sock", free_port()
    knobs: dict[str, Any] = {
        "data_dir": data, "port": port, "inference_addresses": address, "inference_listen": address,
        "threads": threads, "devices": "cpu", "redis_url": "redis://127.0.0.1:1/0", "min_free_bytes": 0,
    }  # fmt: skip
    settings = Settings(**knobs)
    files, model_id = Storage(data), uuid.uuid4()
    files.create()
    environment = {f"DENLL_{name.upper()}": str(value) for name, value in knobs.items()}
    _started([sys.executable, "-m", "migrations"], environment).wait(START_S)
    facts: dict[str, Any] = {"method": "ce", "network": FREE, "classes": [], "digest": FREE, "spec": {}}
    if model != FREE:
        _link(Path(model), files.model(model_id))
        manifest = model_archive.verify(files.model(model_id))
        facts |= {"network": manifest.spec.network, "classes": list(manifest.classes), "digest": manifest.digest}
    engine = connect(settings)
    with transaction(engine) as session:
        session.execute(insert(ModelRow).values(id=model_id, size_bytes=0, metrics={}, **facts))
    engine.dispose()
    roots = [_started([sys.executable, "-m", module], environment) for module in (inference, "app.main")]
    query = f"/predict?model={model_id}"
    with _ending(Server("ours", port, roots, {"multipart": query, "raw": query})) as server:
        yield server


def _link(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in source.iterdir():
        os.link(file, target / file.name)


@contextlib.contextmanager
def peer(name: str, model: Path | str, threads: int) -> Iterator[Server]:
    port = free_port()
    command = [str(PEERS), "-m", f"tests.benchmarks._serving.{name}", str(port), str(model), str(threads)]
    paths = {"multipart": "/predict"} | ({"raw": "/raw"} if name == "naive" else {})
    with _ending(Server(name, port, [_started(command, {})], paths)) as server:
        yield server


def _started(command: list[str], more: dict[str, str]) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DENLL_")} | {"OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment | more | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL if "-v" not in sys.argv else None,
        stderr=None if "-v" in sys.argv else subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # noqa: PLW1509
        start_new_session=True,  # a group of its own, so that its end reaches children that lost their parent
    )


@contextlib.contextmanager
def _ending(server: Server) -> Iterator[Server]:
    """All its processes are gone afterwards, even if ours is killed: leaders die with it, their children do not."""
    groups = [f"-{process.pid}" for process in server.roots]
    last = ["sh", "-c", 'cat; kill -s KILL -- "$@"', "sh", *groups]  # when its input ends, which our end ends too
    warden = subprocess.Popen(last, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield server
    finally:
        server.signal(signal.SIGCONT)
        for process in server.roots:
            process.terminate()
        for process in server.roots:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        warden.communicate()
        for process in server.roots:
            process.wait()


def await_all(servers: Iterable[Server]) -> None:
    """Wait until each has answered a picture; from then on it stands still until it is measured."""
    for server in servers:
        eventually(functools.partial(_answers, server), seconds=START_S, what=server.name)
        server.signal(signal.SIGSTOP)


def _answers(server: Server) -> bool:
    if any(process.poll() is not None for process in server.roots):
        raise RuntimeError(f"{server.name} ended while it started")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        head, _, body = request("multipart", server.paths["multipart"], pictures(1)[0]).partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        connection.request("POST", server.paths["multipart"], body, headers)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _parents() -> dict[int, int]:
    parent_by_pid = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent_by_pid[int(entry.name)] = int(_stat(int(entry.name))[1])
    return parent_by_pid


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat behind the name: state, parent, ...; times are fields 11 to 14."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
