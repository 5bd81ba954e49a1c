"""The client of the upload benchmark: `python -m tests.benchmarks._upload_client URL raw|multipart FILE`.

A process of its own with the standard library alone, so that it starts at once and costs the server nothing.
"""

from __future__ import annotations

import http.client
import sys
from pathlib import Path
from urllib.parse import urlsplit

MIB = 1024 * 1024
BOUNDARY = b"0123456789abcdef"
TYPES = {"raw": "application/zip", "multipart": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


def send(url: str, form: str, path: Path) -> None:
    """One upload from a file, a megabyte in hand; prints the status."""
    target = urlsplit(url)
    head = (
        b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n'
        b"Content-Type: application/zip\r\n\r\n"
    )
    tail = b"\r\n--" + BOUNDARY + b"--\r\n"
    if form == "raw":
        head = tail = b""
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=300)
    connection.putrequest("POST", target.path)
    connection.putheader("Content-Type", TYPES[form])
    connection.putheader("Content-Length", str(len(head) + path.stat().st_size + len(tail)))
    connection.endheaders()
    connection.send(head)
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            connection.send(chunk)
    connection.send(tail)
    print(connection.getresponse().status)


if __name__ == "__main__":
    url, form, file = sys.argv[1:]
    send(url, form, Path(file))
