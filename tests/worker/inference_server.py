"""The socket of an inference process, in the process of a test and without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.predictions import frames
from app.settings import Settings
from tests.servers import free_port
from worker.inference import prefork
from worker.inference.batcher import Batcher
from worker.inference.model_cache import ModelCache
from worker.inference.server import serve


@asynccontextmanager
async def serving(tmp_path: Path, device: str = "cpu", **limits: Any) -> AsyncIterator[int]:
    """The socket of an inference process without models, on the port that this yields."""
    address = f"tcp://127.0.0.1:{free_port()}"
    settings = Settings(data_dir=tmp_path, inference_listen=address, **limits)
    batcher = Batcher(settings, ModelCache(None, device, 1, 1))  # type: ignore[arg-type]  # no request reaches it
    listeners = prefork.listen(frames.parse_address(address))
    ended = asyncio.Event()
    server = asyncio.create_task(serve(settings, batcher, listeners, ended))
    try:
        yield listeners[0].getsockname()[1]
    finally:
        ended.set()
        await server
