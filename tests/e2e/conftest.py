"""The whole service as a user starts it: one embedded launcher a session, in a folder of its own; and a browser."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests import servers
from tests.e2e import flags
from tests.e2e.flags import Flags

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ROOT = Path(__file__).parents[2]
READY_S = 180.0
ENDED_S = 40.0
expect.set_options(timeout=60_000)  # ms that a page has to come to what a test expects: other tests use the cores
READY_AT = {"worker.embedded": "/readyz", "app.main": "/livez"}  # an API by itself knows neither broker nor inference


@contextlib.contextmanager
def launched(data: Path, module: str = "worker.embedded", **settings: str) -> Iterator[str]:
    """The base URL of a service that runs in `data`, with these settings, until the end of the block.

    Args:
        data: Its data folder.
        module: What is run; `app.main` is one more API beside a service that runs there already.
        settings: Variables of its environment; without `DENLL_PORT` a free port is taken.
    """
    port = settings.get("DENLL_PORT") or str(servers.free_port())
    own = {key: value for key, value in os.environ.items() if not key.startswith("DENLL_")}
    environment = own | {
        "DENLL_DATA_DIR": str(data),
        "DENLL_PORT": port,
        "DENLL_MIN_FREE_BYTES": str(100 * 1024 * 1024),  # a small disk runs these tests too
        "DENLL_THREADS": "1",  # small trainings gain nothing from more, and other tests use the cores
        "DENLL_PREDICT_DEADLINE_S": "120",  # the cores may give a model to load too little in the usual time
        **settings,
    }
    url = f"http://127.0.0.1:{port}"
    file = data / f"{module}.log"
    with file.open("ab") as log:
        launcher = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=servers.die_with_parent,  # noqa: PLW1509
        )
        try:
            _await_ready(launcher, f"{url}{READY_AT[module]}", file)
            yield url
        finally:
            launcher.send_signal(signal.SIGINT)  # what Ctrl-C sends: it ends everything it started
            try:
                launcher.wait(ENDED_S)
            except subprocess.TimeoutExpired:
                launcher.kill()
                raise


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of `service`."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="package")
def service(data: Path) -> Iterator[str]:
    """The base URL of a running embedded service that is ready."""
    with launched(data) as url:
        yield url


@pytest.fixture
def flagged(service: str, data: Path) -> Iterator[Flags]:
    """A new data set on the service, and a job that has flagged some of its labels."""
    with httpx2.Client(base_url=service, timeout=60) as api:
        yield flags.make(api, data)


@pytest.fixture(scope="package")  # as wide as the service, and before it: without a browser none is started
def chromium() -> str:
    path = os.environ.get("TEST_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip("NOT RUN: the page was not tested, no Chromium on PATH (set TEST_CHROMIUM to one)")
    return path


@pytest.fixture(scope="module")  # Playwright keeps an event loop running in this thread: it must not outlive this file
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


class Console:
    """What the browser complained of. `expected` are statuses that a test provokes: Chromium logs each as an error."""

    def __init__(self, page: Page) -> None:
        self.expected: set[int] = set()
        self._errors: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self._errors.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._errors.append(message.text)

    @property
    def errors(self) -> list[str]:
        status = re.compile(r"responded with a status of (\d+)")
        return [e for e in self._errors if not ((match := status.search(e)) and int(match[1]) in self.expected)]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def _await_ready(launcher: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if launcher.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"the service is not ready at {url}:\n{log.read_text(errors='replace')[-3000:]}")
