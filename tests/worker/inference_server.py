"""The socket of an inference process, in the process of a test and without a model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from app.settings import Settings
from tests.servers import free_port
from worker.inference.batcher import Batcher
from worker.inference.model_cache import ModelCache
from worker.inference.server import serve


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, **limits: Any) -> AsyncIterator[int]:
    """The socket of an inference process without models, on the port that this yields."""
    port = free_port()
    settings = Settings(data_dir=tmp_path, inference_listen=f"tcp://127.0.0.1:{port}", **limits)
    batcher = Batcher(settings, ModelCache(None, "cpu", 1, 1))  # type: ignore[arg-type]  # no request reaches it
    ended = asyncio.Event()
    server = asyncio.create_task(serve(settings, batcher, ended))
    try:
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.01)
        yield port
    finally:
        ended.set()
        await server
