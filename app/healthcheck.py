"""`python -m app.healthcheck [api | inference | heartbeat]`: exit status 0 when the process of this container works.

    api        GET /livez returns 200
    inference  the inference process reads a request without an image, and its device can be used
    heartbeat  a process with this host name (a supervisor, a dispatcher) has written its heartbeat in time and no fault

It runs every few seconds, so each check imports no more than it needs.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.request
from collections.abc import Callable

TIMEOUT_S = 3.0
EVERYWHERE = {"0.0.0.0", "", "::"}  # noqa: S104 - what is bound, not what we bind


def api() -> bool:
    """Whether the API process responds."""
    host, port = os.environ.get("DENLL_HOST", "127.0.0.1"), os.environ.get("DENLL_PORT", "8000")
    with urllib.request.urlopen(f"http://{_reachable(host)}:{port}/livez", timeout=TIMEOUT_S) as response:
        return bool(response.status == 200)


def inference() -> bool:
    """Whether the inference process reads a request without an image and refuses it for that, and for nothing else."""
    from app.predictions import frames, handshake

    secret = os.environ.get("DENLL_INFERENCE_SECRET", "")
    address = frames.parse_address(os.environ.get("DENLL_INFERENCE_LISTEN", "tcp://127.0.0.1:8001"))
    with socket.socket(socket.AF_UNIX if address.path else socket.AF_INET) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(address.path or (_reachable(address.host or ""), address.port))
        with connection.makefile("rb") as replies:
            if secret and not address.path:
                client = handshake.ClientHandshake(secret.encode())
                while answer := client.answer(json.loads(replies.readline(handshake.GREETING_BYTES))):
                    connection.sendall(b"".join(frames.encode(answer)))
            connection.sendall(b"".join(frames.encode({"id": "healthcheck"})))
            error = json.loads(replies.readline(frames.HEADER_BYTES))["error"]
    if error["code"] != "malformed":
        raise RuntimeError(error["detail"])
    return True


def heartbeat() -> bool:
    """Whether a process of this host has written its heartbeat row in time, and no fault into it."""
    from app import worker_registry
    from app.db.session import connect, transaction
    from app.settings import current

    engine = connect(current(), "command")
    try:
        with transaction(engine, read_only=True) as session:
            return worker_registry.is_alive(session, socket.gethostname()[:100])
    finally:
        engine.dispose()


CHECKS: dict[str, Callable[[], bool]] = {"api": api, "inference": inference, "heartbeat": heartbeat}


def main(arguments: list[str]) -> int:
    """Run the check that the first argument names, by default `api`.

    Returns:
        Exit status: 0 when the process works, 1 when it does not, with the reason on standard error; 2 for unknown
        arguments.
    """
    check = CHECKS.get((arguments or ["api"])[0])
    if check is None or len(arguments) > 1:
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    try:
        return 0 if check() else 1
    except Exception as error:  # noqa: BLE001 - any error means that the process does not work
        print(f"{type(error).__name__}: {error}"[:500], file=sys.stderr)  # noqa: T201
        return 1


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in EVERYWHERE else host


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
