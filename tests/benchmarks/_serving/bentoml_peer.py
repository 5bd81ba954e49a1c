"""Peer: BentoML, one worker, adaptive batching."""

from __future__ import annotations

import os
import sys
from typing import Any

import bentoml
import numpy as np
from PIL.Image import Image

from tests.benchmarks._serving.model import Model


@bentoml.service(workers=1, traffic={"timeout": 60}, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Peer:
    def __init__(self) -> None:
        self._model = Model(os.environ["PEER_FOLDER"], int(os.environ["PEER_THREADS"]))

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=60_000)  # type: ignore[untyped-decorator]
    def predict(self, file: list[Image]) -> list[dict[str, Any]]:
        return self._model.answer([np.asarray(picture.convert("RGB")) for picture in file])


if __name__ == "__main__":
    port, folder, threads = sys.argv[1:]
    os.environ |= {"PEER_FOLDER": folder, "PEER_THREADS": threads, "BENTOML_DO_NOT_TRACK": "True"}
    service = "tests.benchmarks._serving.bentoml_peer:Peer"
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", port])
