"""I1: an upload with its SHA-256, against a bare endpoint that streams, hashes and writes; and the memory it takes.

Conditions: both servers are processes of their own on loopback with the same parser and loop; one upload at a time, by
a client process with a megabyte in hand; a zip of stored bytes that pass as pictures. CPU seconds of the server, the
two alternated; the best of each, because shared machines only ever add. The bare endpoint writes a megabyte at a time
and syncs the file once, as ours does, and checks nothing. Ours guards size and speed, checks the archive's structure,
and writes the row. Growth is the peak of resident memory over the level before the upload.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import uvicorn
from python_multipart.multipart import MultipartParser, parse_options_header

from tests import servers
from tests.benchmarks._sizes import arguments, size
from tests.benchmarks._upload_client import MIB, TYPES
from tests.benchmarks.jobs import TICKS, answers, cpu_seconds
from tests.worker import harness

SMALL, MEDIUM, LARGE = size((64, 256, 512), (2, 4, 8))
ROUNDS = size(5, 1)
PROBE_BYTES = 4096  # pseudo-pictures are random: nothing of them compresses


# --- The bare endpoint: `python -m tests.benchmarks.upload serve PORT FOLDER` ---------------------------------------


class FileWriter:
    """Hashes and writes what it is given, a megabyte at a time, off the loop's thread."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._waiting: list[bytes] = []
        self._bytes = 0

    def take(self, data: bytes) -> bool:
        self._waiting.append(data)
        self._bytes += len(data)
        return self._bytes >= MIB

    def drain(self) -> None:
        block = b"".join(self._waiting)
        self._waiting, self._bytes = [], 0
        self._hash.update(block)
        self._file.write(block)

    def finish(self) -> str:
        self.drain()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()


def bare(path: Path) -> Any:
    """An ASGI application: the body, or the only part of a multipart body, into `path`."""

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        kind, options = parse_options_header(dict(scope["headers"]).get(b"content-type", b""))
        writer, parser = FileWriter(path), None
        full = False

        def part(data: bytes, start: int, end: int) -> None:
            nonlocal full
            full = writer.take(data[start:end]) or full

        if kind == b"multipart/form-data":
            parser = MultipartParser(options[b"boundary"], {"on_part_data": part})
        more = scope["method"] == "POST"
        while more:
            message = await receive()
            more = message.get("more_body", False)
            if parser is None:
                full = writer.take(message["body"])
            else:
                parser.write(message["body"])
            if full:
                full = False
                await asyncio.to_thread(writer.drain)
        digest = await asyncio.to_thread(writer.finish)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"64")]})
        await send({"type": "http.response.body", "body": digest.encode()})

    return application


# --- The measurement ------------------------------------------------------------------------------------------------


class Server(NamedTuple):
    pid: int
    url: str
    folder: Path  # where its uploads lie

    def receives(self, form: str, path: Path) -> float:
        """CPU seconds that one upload takes."""
        before = cpu_seconds(self.pid)
        command = [sys.executable, "-m", "tests.benchmarks._upload_client", self.url, form, str(path)]
        done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() in {"200", "202"}, done.stdout
        used = max(cpu_seconds(self.pid) - before, 1 / TICKS)  # the kernel counts whole ticks
        for file in self.folder.iterdir():
            file.unlink()
        return used

    def memory(self, field: str) -> int:
        """VmRSS, or VmHWM: the peak since it was last forgotten, in bytes."""
        rows = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith(field)) * 1024

    def growth(self, form: str, path: Path) -> float:
        """MiB by which the peak exceeds the level before."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        before = self.memory("VmRSS")
        self.receives(form, path)
        return (self.memory("VmHWM") - before) / MIB


@contextlib.contextmanager
def both(folder: Path) -> Iterator[tuple[Server, Server]]:
    ports = servers.free_port(), servers.free_port()
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(servers.redis_server())
        knobs = {"port": ports[0], "min_free_bytes": 100 * MIB}
        made = stack.enter_context(harness.opened(folder, "", redis.url, **knobs))
        bare_folder = folder / "bare"
        bare_folder.mkdir()
        ours = made.start("app.main", name="api")
        theirs = made.start("tests.benchmarks.upload", "serve", str(ports[1]), str(bare_folder), name="bare")
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        servers.eventually(lambda: answers(f"{urls[0]}/livez"), seconds=60.0)
        servers.eventually(lambda: answers(f"{urls[1]}/"), seconds=60.0)
        yield (
            Server(ours.pid, f"{urls[0]}/datasets", made.files.root / "uploads"),
            Server(theirs.pid, f"{urls[1]}/", bare_folder),
        )


def archive(path: Path, mib: int) -> Path:
    """A zip of that size: two classes, stored entries of 32 MiB at most."""
    entry_bytes = min(mib // 2, 32) * MIB
    with zipfile.ZipFile(path, "w") as target:
        for number in range(mib * MIB // entry_bytes):
            target.writestr(f"class-{number % 2}/{number}.jpg", os.urandom(PROBE_BYTES) * (entry_bytes // PROBE_BYTES))
    return path


def measure() -> None:
    with TemporaryDirectory() as home:
        folder = Path(home)
        small, medium, large = (archive(folder / f"{mib}.zip", mib) for mib in (SMALL, MEDIUM, LARGE))
        with both(folder) as (ours, theirs):
            for form in TYPES:
                ours.receives(form, small)
                theirs.receives(form, small)
                rounds = [(theirs.receives(form, medium), ours.receives(form, medium)) for _ in range(ROUNDS)]
                least, own = (min(times) for times in zip(*rounds, strict=True))
                grown = {
                    f"growth_{mib}_mib": round(ours.growth(form, p), 1) for mib, p in ((SMALL, small), (LARGE, large))
                }
                ratio = round(least / own, 2)
                line = {
                    "id": "I1",
                    "benchmark": f"upload as {form}, speed over a bare endpoint",
                    "measured": ratio,
                    "target": ">= 0.9",
                    "met": ratio >= 0.9 and max(grown.values()) <= 8,
                    "mib_per_cpu_s": round(MEDIUM / own),
                    "bare_mib_per_cpu_s": round(MEDIUM / least),
                    **grown,
                }
                print(json.dumps(line), flush=True)


def serve(port: int, folder: Path) -> None:
    uvicorn.run(bare(folder / "upload"), port=port, log_config=None, access_log=False, http="httptools")


if __name__ == "__main__":
    match arguments():
        case ["serve", port, folder]:
            serve(int(port), Path(folder))
        case _:
            measure()
