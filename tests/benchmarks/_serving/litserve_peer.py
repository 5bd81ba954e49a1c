"""Peer: LitServe, batched, in the faster of its two transports.

It looks at the annotations of `decode_request` themselves, so they must not be postponed.
"""

import sys
from typing import Any

import litserve
from fastapi import Request

from ml.data.decoding import ImageArray
from tests.benchmarks._serving.model import Model


class Api(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, folder: str, threads: int) -> None:
        super().__init__(max_batch_size=64, batch_timeout=0.001)
        self._folder, self._threads = folder, threads

    def setup(self, device: str) -> None:
        self._model = Model(self._folder, self._threads)

    def decode_request(self, request: Request) -> ImageArray:
        return self._model.decode(request["file"].file)

    def batch(self, inputs: list[ImageArray]) -> list[ImageArray]:
        return inputs

    def predict(self, pictures: list[ImageArray]) -> list[dict[str, Any]]:
        return self._model.answer(pictures)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    port, folder, threads = sys.argv[1:]
    server = litserve.LitServer(Api(folder, int(threads)), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False, access_log=False)
