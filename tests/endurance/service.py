"""A service as a user starts it, with clients that keep asking: on SQLite with the embedded broker, or on servers."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2 as httpx

from tests import servers
from tests.servers import die_with_parent, eventually, free_port
from tests.worker.harness import ROOT, children, pictures

STACKS = ("sqlite", "postgres")
JOB = {"method": "ce", "network": "small", "batch_size": 16, "image_size": 16, "precision": "f32"}
PICTURE = pictures(1)[0][2]


class Service:
    """The launcher, what it has started, and a client.

    Args:
        folder: Data folder and log.
        environment: Settings of the stack.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        port = free_port()
        self.data = folder / "data"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("DENLL_")}
        own = {"DENLL_DATA_DIR": str(self.data), "DENLL_PORT": str(port), "DENLL_THREADS": "1"}
        with (folder / "log").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker.embedded"],
                cwd=ROOT,
                env=inherited | own | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=30.0)
        eventually(self._is_ready, seconds=120.0, what=f"the service; see {folder}")

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return bool(self.client.get("/readyz").json().get("status") == "ok")
        return False

    def descendants(self) -> dict[int, str]:
        """The command lines of all living descendants of the launcher, by pid."""
        commands: dict[int, str] = {}
        new = [self.process.pid]
        while new:
            new = [child for pid in new for child in children(pid)]
            for pid in new:
                with contextlib.suppress(OSError):
                    commands[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        return commands

    def ask(self, method: str, path: str, **arguments: Any) -> Any:
        """The JSON of a response; a request that is refused for a moment is sent again."""

        def accepted() -> httpx.Response | None:
            with contextlib.suppress(httpx.TransportError):
                response = self.client.request(method, path, **arguments)
                if response.status_code not in (429, 503):
                    return response
            return None

        response = eventually(accepted, seconds=60.0, what=path)
        assert response is not None
        response.raise_for_status()
        return response.json()

    def dataset(self, images: int = 96) -> str:
        """The id of a data set of small pictures, ready."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for name, _, data in pictures(images):
                file.writestr(name, data)
        headers = {"Content-Type": "application/zip"}
        dataset = self.ask("POST", "/datasets?name=endurance", content=archive.getvalue(), headers=headers)["id"]
        eventually(lambda: self.ask("GET", f"/datasets/{dataset}")["status"] == "ready", seconds=60.0, what="its check")
        return str(dataset)

    def submit(self, dataset: str, **spec: Any) -> str:
        return str(self.ask("POST", "/jobs", json=JOB | {"dataset_id": dataset} | spec)["id"])

    def finished(self, job: str, seconds: float) -> dict[str, Any]:
        """The job once it has ended."""

        def ended() -> dict[str, Any] | None:
            row: dict[str, Any] = self.ask("GET", f"/jobs/{job}")
            return row if row["status"] in {"succeeded", "failed", "cancelled"} else None

        row = eventually(ended, seconds=seconds, what=f"the end of job {job}")
        assert row is not None
        return row

    def end(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(60.0)


@contextlib.contextmanager
def running(stack: str) -> Iterator[Service]:
    """The service on one of `STACKS`; data and logs are kept when something fails."""
    with contextlib.ExitStack() as resources:
        environment = {}
        if stack == "postgres":
            server = resources.enter_context(servers.postgres("127.0.0.2"))
            environment["DENLL_DATABASE_URL"] = resources.enter_context(servers.fresh_database(server))
            environment["DENLL_REDIS_URL"] = resources.enter_context(servers.redis_server()).url
        folder = Path(tempfile.mkdtemp(prefix=f"endurance-{stack}-"))
        service = Service(folder, environment)
        resources.callback(service.end)
        yield service


class Outcome(NamedTuple):
    """A response, or what came instead of one (status 0)."""

    status: int
    seconds: float
    is_honest: bool  # success, or a problem document that says when to try again


class Client(threading.Thread):
    """Sends one request after another until it is ended.

    Args:
        send: Sends a request.
        pause_s: Between two requests.
    """

    def __init__(self, url: str, send: Callable[[httpx.Client], httpx.Response], pause_s: float) -> None:
        super().__init__(daemon=True)
        self.outcomes: list[Outcome] = []
        self._url, self._send, self._pause_s = url, send, pause_s
        self._ended = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30.0) as client:
            while not self._ended.wait(self._pause_s):
                started = time.monotonic()
                try:
                    response = self._send(client)
                except httpx.TransportError:
                    self.outcomes.append(Outcome(0, time.monotonic() - started, False))
                    continue
                refused = response.headers.get("Retry-After") and "problem+json" in response.headers["Content-Type"]
                is_honest = response.status_code < 500 or (response.status_code == 503 and bool(refused))
                self.outcomes.append(Outcome(response.status_code, time.monotonic() - started, is_honest))

    def end(self) -> list[Outcome]:
        self._ended.set()
        self.join()
        return self.outcomes


def predict(client: httpx.Client) -> httpx.Response:
    return client.post("/predict", content=PICTURE, headers={"Content-Type": "image/png"})


def live(client: httpx.Client) -> httpx.Response:
    return client.get("/livez")
