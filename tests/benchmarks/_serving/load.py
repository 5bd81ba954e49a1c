"""The load generator: so many clients, each sending its next request when the last one is answered, until all are sent.

A process of its own that knows bytes and sockets only: requests are complete before the clock starts, and of an answer
it reads no more than status, length and label. The plan comes on standard input, outcomes leave, both as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
LABEL = re.compile(rb'"label": ?"([^"]*)"')
PATIENCE_S = 120.0


class Sent(NamedTuple):
    """A complete HTTP request, the status it must get, and the label it should."""

    data: bytes
    status: int
    label: bytes


class Client(asyncio.Protocol):
    """One keep-alive connection with one request under way."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = b""
        self._begun = 0.0
        self._sent: Sent | None = None
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def next(self) -> None:
        self._sent = next(self._run.requests, None)
        if self._sent is None:
            self._transport.close()
            self.ended.set_result(None)
            return
        self._begun = time.perf_counter()
        self._transport.write(self._sent.data)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = LENGTH.search(self._buffer, 0, head)
        if length is None:
            if not self._buffer.endswith(b"0\r\n\r\n"):  # in chunks
                return
        elif len(self._buffer) < head + 4 + int(length[1]):
            return
        assert self._sent is not None
        self._run.answered(self._sent, self._buffer, time.perf_counter() - self._begun)
        self._buffer = b""
        self.next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self._run.problems["connection lost"] += 1
            self.ended.set_result(None)


class Run:
    def __init__(self, requests: Iterator[Sent]) -> None:
        self.requests = requests
        self.latencies: list[float] = []
        self.problems: Counter[str] = Counter()
        self.otherwise = 0  # answers with another label than expected

    def answered(self, sent: Sent, answer: bytes, seconds: float) -> None:
        self.latencies.append(seconds)
        status = int(answer[9:12])
        if status != sent.status:
            self.problems[f"{status} instead of {sent.status}"] += 1
        elif status == 200:
            label = LABEL.search(answer)
            self.otherwise += label is None or label[1] != sent.label


async def drive(port: int, clients: int, requests: list[Sent], count: int) -> dict[str, object]:
    run = Run(requests[i % len(requests)] for i in range(count))
    loop = asyncio.get_running_loop()
    made = [(await loop.create_connection(lambda: Client(run), "127.0.0.1", port))[1] for _ in range(clients)]
    began = time.perf_counter()
    for client in made:
        client.next()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(client.ended for client in made))
    seconds = time.perf_counter() - began
    in_order = sorted(run.latencies)
    return {
        "answers": len(in_order),
        "seconds": seconds,
        "p50_ms": 1000 * in_order[len(in_order) // 2],
        "p99_ms": 1000 * in_order[int(len(in_order) * 0.99)],
        "problems": dict(run.problems),
        "otherwise": run.otherwise,
    }


async def stages(plan: dict[str, Any], requests: list[Sent]) -> list[dict[str, object]]:
    """One stage right behind the other, so that what a burst leaves behind can be seen."""
    return [await drive(plan["port"], clients, requests, count) for clients, count in plan["stages"]]


def main() -> None:
    plan = json.load(sys.stdin)
    requests = [Sent(b64decode(data), status, label.encode()) for data, status, label in plan["requests"]]
    print(json.dumps(uvloop.run(stages(plan, requests))))


if __name__ == "__main__":
    main()
