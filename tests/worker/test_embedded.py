"""The launcher as a user meets it: one command, one data folder, no orphan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.servers import die_with_parent, eventually, free_port
from tests.worker.harness import ROOT, alive, children
from worker.embedded import launcher

pytestmark = pytest.mark.slow


class Launched:
    def __init__(self, data: Path, port: int, log: Path) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("DENLL_")}
        settings = {"DENLL_DATA_DIR": str(data), "DENLL_PORT": str(port), "DENLL_THREADS": "1"}
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker.embedded"],
                cwd=ROOT,
                env=inherited | settings,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )
        self.address = f"http://127.0.0.1:{port}"

    @property
    def output(self) -> str:
        return self._log.read_text()

    def serving(self) -> bool:
        assert self.process.poll() is None, self.output
        return f"serves at {self.address}" in self.output

    def descendants(self) -> list[int]:
        """The pids of all living descendants."""
        descendants, new = [], [self.process.pid]
        while new:
            new = [child for pid in new for child in children(pid)]
            descendants += new
        return descendants

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def launched(tmp_path: Path, data: Path) -> Iterator[Launched]:
    service = Launched(data, free_port(), tmp_path / "log")
    yield service
    service.end()


def test_it_serves_restarts_what_dies_and_ends_without_an_orphan(
    launched: Launched, data: Path, tmp_path: Path
) -> None:
    eventually(launched.serving, seconds=120.0, what=f"the page\n{launched.output}")
    assert (data / "weights" / "efficientnet_lite0.json").is_file()
    pids = launched.descendants()
    with httpx.Client(base_url=launched.address, timeout=20.0) as client:
        assert client.get("/readyz").json()["status"] == "ok"
        dispatcher = next(pid for pid in pids if b"worker.dispatcher" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(dispatcher, signal.SIGKILL)
        eventually(lambda: running(launched, b"worker.dispatcher", besides=dispatcher), what="the dispatcher again")
        second = Launched(data, free_port(), tmp_path / "second")
        assert second.process.wait(30.0) != 0
        assert "already served" in second.output

    launched.process.send_signal(signal.SIGINT)
    interrupted = time.monotonic()

    assert launched.process.wait(40.0) == 0
    assert time.monotonic() - interrupted < 30.0
    assert not [pid for pid in [*pids, *launched.descendants()] if alive(pid)]


def test_its_sudden_death_ends_every_process(launched: Launched) -> None:
    eventually(lambda: len(launched.descendants()) >= 6, seconds=60.0, what="the processes")
    pids = launched.descendants()
    launched.process.kill()
    launched.process.wait()

    eventually(lambda: not any(map(alive, pids)), seconds=10.0, what="the end of every process")


def running(launched: Launched, name: bytes, *, besides: int) -> bool:
    for pid in launched.descendants():
        try:
            if pid != besides and name in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


def test_the_scratch_of_a_killed_launcher_is_removed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, foreign = tmp_path / "denll-dead", tmp_path / "denll-foreign"
    dead.mkdir()
    foreign.mkdir()
    (dead / "owner").touch()

    with launcher.scratch_folder() as living, launcher.scratch_folder() as own:
        assert set(tmp_path.iterdir()) == {foreign, living, own}
    assert list(tmp_path.iterdir()) == [foreign]
