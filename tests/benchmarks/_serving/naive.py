"""Peer: an endpoint as tutorials write it, with the forward pass in the thread pool behind a lock."""

from __future__ import annotations

import sys
import threading
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, UploadFile
from starlette.concurrency import run_in_threadpool

from tests.benchmarks._serving.model import Model


def create(model: Model) -> FastAPI:
    app = FastAPI()
    lock = threading.Lock()

    def work(data: bytes) -> dict[str, Any]:
        picture = model.decode(data)
        with lock:
            return model.answer([picture])[0]

    async def predict(file: UploadFile) -> dict[str, Any]:
        return await run_in_threadpool(work, await file.read())

    async def predict_raw(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(work, await request.body())

    app.post("/predict")(predict)
    app.post("/raw")(predict_raw)
    return app


if __name__ == "__main__":
    port, folder, threads = sys.argv[1:]
    served = create(Model(folder, int(threads)))
    uvicorn.run(served, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
