"""The launcher as a user meets it: one command, one data folder, no orphan."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from app.settings import Settings
from tests.servers import die_with_parent, eventually, free_port
from tests.worker.harness import ROOT, alive, children, pictures
from worker.embedded import launcher, processes
from worker.embedded.processes import Process, Program

pytestmark = pytest.mark.slow


class Launched:
    def __init__(self, data: Path, port: int, log: Path, *, umask: int = -1, **more: str) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("DENLL_")}
        settings = {"DENLL_DATA_DIR": str(data), "DENLL_PORT": str(port), "DENLL_THREADS": "1", **more}
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker.embedded"],
                cwd=ROOT,
                env=inherited | settings,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # noqa: PLW1509
                umask=umask,
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


@pytest.mark.alone
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


def test_others_on_the_machine_read_no_file_and_processes_only_the_secrets_that_they_need(
    tmp_path: Path, data: Path
) -> None:
    """At the most open umask, in a folder that others could read; after an upload, a training and its logs."""
    key = "a-key-for-the-launcher"
    data.mkdir(mode=0o777)
    data.chmod(0o777)
    service = Launched(data, free_port(), tmp_path / "log", umask=0, DENLL_ADMIN_KEY=key)
    try:
        eventually(service.serving, seconds=120.0, what=f"the page\n{service.output}")
        environments = {
            line: Path(f"/proc/{pid}/environ").read_bytes()
            for pid in service.descendants()
            for line in [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()]
        }
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=service.address, timeout=20.0, headers=headers) as client:
            sent = client.post("/datasets", content=folders(), headers={"Content-Type": "application/zip"}).json()

            def status(path: str) -> Any:
                return client.get(path).json()["status"]

            eventually(lambda: status(f"/datasets/{sent['id']}") == "ready", seconds=60.0, what=sent["id"])
            training = {"dataset_id": sent["id"], "method": "ce", "network": "small", "pretrained": False, "epochs": 1}
            job = client.post("/jobs", json=training).json()
            eventually(lambda: status(f"/jobs/{job['id']}") == "succeeded", seconds=60.0, what=str(job))
    finally:
        service.process.send_signal(signal.SIGINT)
        service.process.wait(40.0)
        service.end()

    def holders(secret: bytes) -> set[str]:
        names = ("app.main", "dispatcher", "Q jobs", "Q datasets", "inference", "fork_server")
        return {name for name in names for line, held in environments.items() if name in line and secret in held}

    assert holders(b"PATH=") == {"app.main", "dispatcher", "Q jobs", "Q datasets", "inference", "fork_server"}
    assert holders(key.encode()) == {"app.main"}
    assert holders(b"DENLL_REDIS_URL=") == {"app.main", "dispatcher", "Q jobs", "Q datasets"}
    paths = [data, *data.rglob("*")]
    assert {path.parts[len(data.parts)] for path in paths[1:]} >= {"datasets", "jobs", "models", "logs", "weights"}
    assert {oct(path.stat().st_mode & 0o7777) for path in paths if path.is_dir()} == {"0o700"}
    assert {oct(path.stat().st_mode & 0o7777) for path in paths if path.is_file()} == {"0o600"}


def folders() -> bytes:
    """A zip of two classes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        for name, _, picture in pictures(32):
            zipped.writestr(name, picture)
    return out.getvalue()


def test_its_sudden_death_ends_every_process(launched: Launched) -> None:
    eventually(lambda: len(launched.descendants()) >= 6, seconds=60.0, what="the processes")
    pids = launched.descendants()
    launched.process.kill()
    launched.process.wait()

    eventually(lambda: not any(map(alive, pids)), seconds=10.0, what="the end of every process")


def test_predictions_are_served_on_while_inference_is_started_again(launched: Launched) -> None:
    """By the process whose parent was killed; it ends with the launcher."""
    eventually(launched.serving, seconds=120.0, what=f"the page\n{launched.output}")

    def served() -> list[tuple[int, list[int]]]:
        """Processes that the launcher has started for it, with those that they have forked."""
        started = [pid for pid in children(launched.process.pid) if b"worker.inference" in command(pid)]
        return [(pid, forked) for pid in started if (forked := children(pid))]

    ((parent, (serving,)),) = eventually(served, what="a serving process")
    os.kill(parent, signal.SIGKILL)
    eventually(lambda: [pid for pid, _ in served() if pid != parent], seconds=60.0, what="another one")
    assert alive(serving)

    launched.process.kill()
    launched.process.wait()
    eventually(lambda: not alive(serving), seconds=10.0, what="its end")


def test_a_log_is_cut_while_its_program_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOG_BYTES", 10_000)
    log, before = tmp_path / "counting.log", tmp_path / "counting.log.1"
    script = "import itertools\nfor n in itertools.count(): print(n, flush=True)"
    process = Process(Program("counting", [sys.executable, "-c", script], grace_s=1.0), os.environ, tmp_path)
    process.start()

    def is_cut_after(number: int) -> bool:
        process.limit_log()
        return before.exists() and int(before.read_text().split()[-1]) > number

    try:
        eventually(lambda: is_cut_after(0), what="a first cut")
        eventually(lambda: is_cut_after(int(before.read_text().split()[-1])), what="another")
        eventually(lambda: log.stat().st_size > 0, what="a line after it")
    finally:
        process.terminate()
        process.end(time.monotonic())
    lines = log.read_text().split()
    assert [int(line) for line in lines] == list(range(int(lines[0]), int(lines[0]) + len(lines)))
    assert int(lines[0]) > int(before.read_text().split()[-1])
    assert {path.name for path in tmp_path.iterdir()} == {log.name, before.name}


def running(launched: Launched, name: bytes, *, besides: int) -> bool:
    return any(pid != besides and name in command(pid) for pid in launched.descendants())


def command(pid: int) -> bytes:
    """The program and arguments of a process; nothing of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


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


def test_a_port_that_is_in_use_is_refused_and_not_taken_for_its_own(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher, "PORT_FREE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        data.mkdir()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        try:
            status = launcher.Launcher(Settings(data_dir=data, port=port), tmp_path).run()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert status == 1
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors == f"port {port} of 127.0.0.1 is in use: end what listens there, or set DENLL_PORT\n"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DENLL_PORT", "http", "DENLL_PORT: Input should be a valid integer"),
        ("DENLL_OIDC_ISSUER", "sso", "DENLL_OIDC_ISSUER: this must be an https:// URL"),
        ("DENLL_DEVICES", "gpu", "DENLL_DEVICES must be auto"),
        ("DENLL_ADMIN_KEY", "short", "DENLL_ADMIN_KEY must have at least 16 characters"),
        ("DENLL_LOGIN_DEFAULT_SCOPES", "read", "login_default_scopes"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(
    name: str, value: str, message: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENLL_DATA_DIR", str(data))
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        launcher.main()

    (line,) = str(ended.value.code).splitlines()
    assert message in line
