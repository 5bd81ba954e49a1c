"""What a peer does with a picture: decode it, run the network, name the class. Plain torch, float32, nothing of ours.

The decoder is ours, the fastest at hand, so that no peer loses by its choice of one. `free` is a model that costs
nothing: everybody decodes the picture and answers with the same constants.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ml import networks
from ml.data import decoding
from ml.data.decoding import ImageArray
from ml.serving import model_archive

FREE = "free"
SIDE = 32
CLASSES = tuple(f"class-{n}" for n in range(10))
ANSWER = {"label": CLASSES[0], "score": 1.0, "top_k": [[name, 0.1] for name in CLASSES[:5]]}


class Model:
    def __init__(self, folder: str, threads: int) -> None:
        self._network: torch.nn.Module | None = None
        if folder == FREE:
            return
        torch.set_num_threads(threads)
        manifest, state, _ = model_archive.read(Path(folder))
        self._classes = manifest.classes
        spec = manifest.spec
        self._network = networks.build(
            spec.network, len(manifest.classes), spec.image_size, published_stem=spec.pretrained
        )
        prefix = next(name for name in state if name.endswith("classifier.weight")).removesuffix("classifier.weight")
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        self._network.load_state_dict(own)
        self._network.eval()
        self._mean, self._std = (torch.tensor(v).view(3, 1, 1) for v in (manifest.mean, manifest.std))

    def decode(self, data: bytes | io.BufferedIOBase) -> ImageArray:
        return decoding.decode(data if isinstance(data, bytes) else data.read())

    def answer(self, pictures: Sequence[ImageArray]) -> list[dict[str, Any]]:
        """uint8 (S, S, 3) each."""
        if self._network is None:
            return [ANSWER] * len(pictures)
        with torch.inference_mode():
            stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(255)
            scores = self._network((stacked - self._mean) / self._std).softmax(dim=1)
            best, order = scores.topk(5, dim=1)
        return [
            {
                "label": self._classes[rows[0]],
                "score": values[0],
                "top_k": [[self._classes[n], value] for n, value in zip(rows, values, strict=True)],
            }
            for rows, values in zip(order.tolist(), best.tolist(), strict=True)
        ]
