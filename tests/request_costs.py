"""What requests that are built to hurt cost an API process: CPU and memory by /proc, and how long `/livez` takes.

The routes are those of the OpenAPI document; bodies follow from their media types, so that a new route is measured too.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import os
import re
import subprocess
import tarfile
import threading
import time
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests import servers
from tests.worker import harness

MIB = 1024 * 1024
TICKS = os.sysconf("SC_CLK_TCK")
CPU_S, CPU_S_PER_MIB = 0.25, 0.25
MEMORY_BYTES, MEMORY_PER_BYTE = 16 * MIB, 4
LIVEZ_S = 1.0
BOUNDARY = "b" * 40
IDS = {"version": "1", "alias": "default", "name": "small"}
TUS = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0"}

# The most that a route takes, or that is enough, by media type; elsewhere 1 MiB.
MOST_BYTES = {
    ("POST /predict", ""): 16 * MIB,
    ("POST /predict", "application/json"): 64 * MIB,
    ("POST /datasets", ""): 4 * MIB,
    ("POST /datasets", "application/json"): MIB,
    ("POST /datasets/{dataset_id}/labels", ""): 2 * MIB,
}

Body = Callable[[int], bytes]


class Cost(NamedTuple):
    """What one request cost, and what it may cost."""

    route: str
    body: str
    size: int
    status: int
    cpu_s: float
    memory_bytes: int
    livez_s: float

    @property
    def cpu_ratio(self) -> float:
        """CPU seconds, as a share of what a request of this size may take."""
        return self.cpu_s / (CPU_S + CPU_S_PER_MIB * self.size / MIB)

    @property
    def memory_ratio(self) -> float:
        return self.memory_bytes / (MEMORY_BYTES + MEMORY_PER_BYTE * self.size)

    @property
    def livez_ratio(self) -> float:
        return self.livez_s / LIVEZ_S

    @property
    def worst(self) -> float:
        return max(self.cpu_ratio, self.memory_ratio, self.livez_ratio)


# --- Bodies --------------------------------------------------------------------------------------------------------


def repeated(start: bytes, unit: bytes, end: bytes) -> Body:
    """A body of any size: `unit` again and again between `start` and `end`."""
    return lambda size: start + unit * max(1, (size - len(start) - len(end)) // len(unit)) + end


def numbered(start: bytes, unit: str, end: bytes) -> Body:
    """The same with a number in each unit, as in distinct names."""
    return lambda size: start + b"".join(unit.format(n).encode() for n in range(size // (len(unit) + 3))) + end


JSON_VALUES: dict[str, Body] = {
    "empty lists": repeated(b"[", b"[],", b"1]"),
    "empty objects": repeated(b"[", b"{},", b"1]"),
    "small objects": repeated(b"[", b'{"a":{}},', b"1]"),
    "numbers": repeated(b"[", b"1.5,", b"1]"),
    "long numbers": repeated(b"[", b"9" * 4000 + b",", b"1]"),
    "NaN": repeated(b"[", b"NaN,", b"1]"),
    "depth": lambda size: b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6),
    "distinct names": numbered(b"{", '"{}":1,', b'"x":1}'),
    "one name": repeated(b"{", b'"a":1,', b'"a":1}'),
    "quotes": repeated(b'"', b'\\"', b'"'),
    "escapes": repeated(b'"', b"\\u00e9", b'"'),
    "wide text": repeated(b'"\xf0\x9f\x98\x80', b"a", b'"'),
    "base64": repeated(b'"', b"AAAA", b'"'),
    "blanks": repeated(b"[", b" ", b"]"),
}
TABLES = {"rows": b"a,b\n", "blank rows": b"\n", "cells": b"a" + b"," * 2000 + b"\n", "quoted": b'"\n",b\n'}
TABLE_HEADS = {"cells": ",".join(f"c{n}" for n in range(1999)).encode() + b",file,label\n"}
LINES: dict[str, Body] = {
    "no lines": repeated(b"", b"\n", b""),
    "objects": repeated(b"", b"{}\n", b""),
    "edits": numbered(b"", '{{"action":"confirm","image":{},"from":"a"}}\n', b""),
    "renamed classes": lambda size: b"".join(
        b'{"action":"rename_class","from":"%s","to":"c%d"}\n' % (b"c%d" % (n - 1) if n else b"circle", n)
        for n in range(size // 55)
    ),
    "lists": repeated(b"[", b"[],", b"1]"),
}
CELLS: dict[str, Body] = {
    "no rows": repeated(b"action,image,from,to\n", b"\n", b""),
    "edits": numbered(b"action,image,from,to\n", "confirm,{},circle,\n", b""),
    "cells": repeated(b"action\n", b",", b""),
    "quotes": repeated(b"action\n", b'"\n",', b""),
}
FORMS: dict[str, Body] = {
    "parts": repeated(
        b"", b"--" + BOUNDARY.encode() + b'\r\nContent-Disposition: form-data; name="file"\r\n\r\n\r\n', b""
    ),
    "half a boundary": repeated(b"", b"\r\n--" + BOUNDARY[:-1].encode(), b""),
    "line breaks": repeated(b"", b"\r", b""),
    "dashes": repeated(b"", b"\r\n-", b""),
}


def form(content: bytes) -> bytes:
    """A form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def zip_of(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


def tar_of(headers: Iterator[tarfile.TarInfo]) -> bytes:
    """A tar of entries without content."""
    return b"".join(header.tobuf(tarfile.PAX_FORMAT) for header in headers) + bytes(1024)


def many_records(size: int) -> bytes:
    """A tar whose extended headers are made of the shortest records."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 512 * 384
    block = header.tobuf(tarfile.USTAR_FORMAT) + b"6 a=b\n" * (header.size // 6)
    return block * max(1, size // len(block)) + bytes(1024)


def archives(size: int) -> dict[str, bytes]:
    """Archives of at most about `size` bytes; those with a table inflate to the highest ratio that is allowed."""
    images = {f"{n}.png": b"x" for n in range(2)}
    made = {}
    for name, unit in TABLES.items():
        for inflated in (60 * 1024, min(64 * size, 48 * MIB)):
            table = TABLE_HEADS.get(name, b"file,label\n") + compressible(unit, inflated, b"%s,x\n")
            made[f"{inflated} bytes of a table of {name}"] = zip_of(images | {"labels.csv": table})
    objects = b'{"images":[' + compressible(b"{},", 60 * 1024, b'"%s",') + b"{}]}"
    made["annotations"] = zip_of(images | {"instances.json": objects})
    table = b"file,label\n" + compressible(b"a,b\n", 60 * 1024, b"%s,x\n")
    made["many tables"] = zip_of(images | {f"{n}.csv": table for n in range(size // 2048)})
    made["entries"] = zip_of({f"{n}": b"" for n in range(min(size // 100, 100_000))}, zipfile.ZIP_STORED)
    folders = {"/".join(f"{n:04}{level:0>200}" for level in range(14)) + "/x.png": b"" for n in range(size // 6000)}
    made["folders"] = zip_of(folders, zipfile.ZIP_STORED)
    made["extended headers"] = many_records(size)
    entries = tar_of(tarfile.TarInfo(f"{n % 2}/{n}.png") for n in range(min(size // 16, 60_000)))
    made["compressed headers"] = gzip.compress(entries)
    made["compressed zeros"] = gzip.compress(entries[:-1024] + bytes(min(150 * size, 256 * MIB)))
    return made


def compressible(unit: bytes, size: int, noise: bytes) -> bytes:
    """`unit` again and again, with as much noise in between as keeps the compression ratio below its limit."""
    block = unit * (8192 // len(unit))
    return b"".join(block + noise % os.urandom(24).hex().encode() for _ in range(max(1, size // len(block))))


def safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def bodies(media_type: str, properties: Sequence[str], size: int) -> Iterator[tuple[str, bytes, str]]:
    """What to send as this media type: a name, the bytes, and the Content-Type.

    Args:
        media_type: A media type of the OpenAPI document.
        properties: The properties of the objects that the route takes as JSON.
        size: About how many bytes.
    """
    if media_type == "application/json":
        for name, make in JSON_VALUES.items():
            yield name, make(size), media_type
        for field in properties:
            for name in ("empty lists", "wide text", "base64"):
                value = JSON_VALUES[name](size - len(field) - 6)
                yield f"{field}: {name}", b'{"' + field.encode() + b'":' + value + b"}", media_type
    elif media_type == "multipart/form-data":
        kind = f"{media_type}; boundary={BOUNDARY}"
        for name, make in FORMS.items():
            yield name, make(size), kind
            yield f"a file of {name}", form(make(size)), kind
    elif media_type in ("application/x-ndjson", "text/csv"):
        for name, make in (LINES if media_type.endswith("ndjson") else CELLS).items():
            yield name, make(size), media_type
    elif media_type in ("application/zip", "application/x-tar"):
        for name, archive in archives(size).items():
            if archive.startswith(b"PK") == (media_type == "application/zip"):
                yield name, archive, media_type
    elif media_type == "application/octet-stream":
        for name, make in JSON_VALUES.items():
            yield name, safetensors(make(min(size, MIB))), media_type
    else:
        yield "noise", os.urandom(size), "image/png" if media_type == "image/*" else media_type


# --- A real API process --------------------------------------------------------------------------------------------


@dataclass
class Api:
    """An API process of its own.

    Args:
        process: The process.
        port: Where it listens.
        dataset_id: A data set that is ready.
    """

    process: subprocess.Popen[bytes]
    port: int
    dataset_id: str

    def document(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/openapi.json", timeout=10) as answer:
            document: dict[str, Any] = json.load(answer)
        return document

    def send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer; 0 where the server closed the connection before the body ended."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers)
            try:
                answer = connection.getresponse()
                answer.read()
            except (http.client.HTTPException, ConnectionError):
                return 0, {}
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}

    def measure(self, route: str, name: str, body: bytes, kind: str, query: str = "") -> Cost:
        """Send a request, and say what it cost."""
        method, path = route.split(" ")
        headers = {"Content-Type": kind, **TUS} if kind else dict(TUS)
        if path == "/uploads":
            headers["Upload-Length"] = str(len(body))
        target = re.sub(r"\{(\w+)\}", lambda match: self._path_value(match[1], len(body)), path)
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        cpu_s, resident = self._cpu_seconds(), self._memory("VmRSS")
        with LivezProbe(self.port) as probe:
            status, _ = self.send(method, f"{target}?{query}", body, headers)
        spent, peak = self._cpu_seconds() - cpu_s, self._memory("VmHWM")
        return Cost(route, name, len(body) + len(query), status, spent, max(0, peak - resident), probe.slowest_s)

    def _path_value(self, name: str, size: int) -> str:
        if name == "dataset_id":
            return self.dataset_id
        if name == "upload_id":
            _, headers = self.send("POST", "/uploads", b"", TUS | {"Upload-Length": str(max(1, size))})
            return headers.get("location", "/").rpartition("/")[2]
        return IDS.get(name, str(uuid.uuid4()))

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def _memory(self, field: str) -> int:
        rows = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith(field)) * 1024


class LivezProbe:
    """Asks `/livez` again and again in a thread; `slowest_s` is the longest that an answer took."""

    def __init__(self, port: int) -> None:
        self._url, self._ended = f"http://127.0.0.1:{port}/livez", threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.slowest_s = 0.0

    def __enter__(self) -> LivezProbe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._ended.wait(0.02):
            started = time.monotonic()
            with urllib.request.urlopen(self._url, timeout=120) as answer:
                answer.read()
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)


@contextlib.contextmanager
def api(folder: Path) -> Iterator[Api]:
    """A real API process with a data set, on SQLite and without a broker."""
    port = servers.free_port()
    knobs = {"port": port, "min_free_bytes": 0, "max_unfinished_uploads": 10_000}
    with harness.opened(folder, "", f"redis://127.0.0.1:{servers.free_port()}/0", **knobs) as made:
        dataset_id = made.dataset()
        process = made.start("app.main", name="api", within=servers.AS_DEPLOYED)
        service = Api(process, port, str(dataset_id))
        servers.eventually(lambda: _answers(port), seconds=60.0)
        service.document()
        yield service


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def walk(service: Api, sizes: Sequence[int], fields: int | None = None) -> Iterator[Cost]:
    """What every route costs that takes a body or parameters.

    Args:
        service: The API.
        sizes: About how many bytes to send; more than a route takes are cut to that.
        fields: How many fields of an object in JSON are tried one by one; None for all.
    """
    document = service.document()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            route = f"{method.upper()} {path}"
            contents = operation.get("requestBody", {}).get("content", {})
            for media_type, content in contents.items():
                properties = _properties(content.get("schema", {}), document)[:fields]
                most = MOST_BYTES.get((route, media_type), MOST_BYTES.get((route, ""), MIB))
                for size in dict.fromkeys(min(size, most) for size in sizes):
                    for name, body, kind in bodies(media_type, properties, size):
                        yield service.measure(route, f"{media_type}: {name}", body, kind)
            names = [one["name"] for one in operation.get("parameters", []) if one["in"] == "query"]
            if names:
                yield service.measure(route, "long query", b"", "", "&".join(f"{name}={'9' * 4000}" for name in names))
                many = "&".join(f"{names[n % len(names)]}={n}" for n in range(5000))
                yield service.measure(route, "many parameters", b"", "", many)


def _properties(schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    """Properties of a schema and of those that it may be instead."""
    if reference := schema.get("$ref"):
        schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    parts = [*schema.get("anyOf", []), *schema.get("oneOf", [])]
    return list(
        dict.fromkeys((*schema.get("properties", {}), *(n for part in parts for n in _properties(part, document))))
    )
