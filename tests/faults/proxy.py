"""A TCP proxy whose connections a test makes hang, lag or break, while the server behind it is well."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Proxy:
    """Passes connections at `port` on to a server; its loop runs in a thread of its own.

    Args:
        host: Where the server listens.
        port: Of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._passing = asyncio.Event()
        self._passing.set()
        self._lag_s = 0.0
        self._open: set[asyncio.WriteTransport] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._listener = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._listener.sockets[0].getsockname()[1]

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Connections are accepted and acknowledged, and no byte is passed on."""
        self._call(self._passing.clear)
        try:
            yield
        finally:
            self._call(self._passing.set)

    @contextlib.contextmanager
    def lagging(self, seconds: float) -> Iterator[None]:
        """Whatever arrives is passed on so much later."""
        self._lag_s = seconds
        try:
            yield
        finally:
            self._lag_s = 0.0

    def break_connections(self) -> int:
        """Reset every connection; new ones are accepted. Returns how many there were."""
        return self._run(self._break())

    def close(self) -> None:
        self._run(self._end())
        self._call(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._server)
            ends = writer.transport, server_writer.transport
            self._open |= set(ends)
            try:
                await asyncio.gather(self._pass(reader, server_writer), self._pass(server_reader, writer))
            finally:
                for end in ends:
                    end.abort()
                    self._open.discard(end)
        except OSError:
            writer.transport.abort()  # the server is away
        finally:
            self._connections.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self._lag_s:
                await asyncio.sleep(self._lag_s)
            await self._passing.wait()
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def _break(self) -> int:
        broken = len(self._open) // 2
        for end in list(self._open):
            end.abort()
        return broken

    async def _end(self) -> None:
        self._listener.close()
        self._passing.set()
        await self._break()
        if self._connections:
            await asyncio.wait(self._connections)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10.0)

    def _call(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)


@contextlib.contextmanager
def proxy(host: str, port: int) -> Iterator[Proxy]:
    """A proxy before that server, closed at the end."""
    opened = Proxy(host, port)
    try:
        yield opened
    finally:
        opened.close()
