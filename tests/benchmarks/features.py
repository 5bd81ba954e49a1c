"""P3: encoding images by a frozen backbone, and reading cached features, one thread.

The peer is the usual way to use a backbone as a feature extractor: the same network in eval mode, eager, f32, in NCHW,
under `torch.inference_mode`. Ours is the encoder of a training: batch normalisation folded, channels_last, bf16 where
the CPU has it and where it agrees. Batches are interleaved; CPU time of this process.

Reading: rows of a memory-mapped feature file in random order, as an epoch reads them, in GB of float16 a second.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
from pathlib import Path

import torch

from ml import networks
from ml.data.image_store import ImageStore
from ml.features.encoder import Encoder
from ml.features.feature_file import FeatureFile, load_or_write
from ml.features.feature_store import FeatureStore
from ml.networks import chain, weights
from ml.training import devices
from tests.benchmarks._sizes import size
from tests.benchmarks._timing import cpu_seconds

NETWORK, SIDE, BATCH = "efficientnet_lite0", 128, 32
TARGET, READ_TARGET = 2.5, 1.0


def encoder(repeats: int) -> dict[str, object]:
    """Images a CPU-second of the encoder over those of the peer."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        record = weights.add(Path(folder), NETWORK)
        network = networks.build(NETWORK, 10, SIDE, weights.file_of(Path(folder), record))
    pictures = torch.randn(BATCH, 3, SIDE, SIDE)
    peer = copy.deepcopy(network).eval()
    frozen, _ = chain.cut(network, "none")
    half = devices.uses_bf16("auto", torch.device("cpu"))
    ours = Encoder(frozen, SIDE).prepare(pictures[:4], half=half)
    fast = pictures.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        ours(fast), peer.features(pictures)  # warm
        pairs = [
            (cpu_seconds(lambda: ours(fast)), cpu_seconds(lambda: peer.features(pictures))) for _ in range(repeats)
        ]
    ratio = statistics.median(theirs / own for own, theirs in pairs)
    result: dict[str, object] = {
        "id": "P3",
        "benchmark": f"frozen {NETWORK} over eager f32, {SIDE} px",
        "measured": round(ratio, 2),
        "target": f">= {TARGET}",
        "met": ratio >= TARGET,
        "precision": "bf16" if ours.uses_bf16 else "f32",
        "images_per_cpu_s": round(BATCH / statistics.median(own for own, _ in pairs)),
        "peer_images_per_cpu_s": round(BATCH / statistics.median(theirs for _, theirs in pairs)),
    }
    if ratio < TARGET and not half:
        result |= {"met": None, "why": "this CPU has no bf16"}
    return result


def reading(rows: int, width: int) -> dict[str, object]:
    """GB a second of an epoch over cached features, batches of 128."""
    with tempfile.TemporaryDirectory() as folder:
        block = torch.randn(1000, width)
        [features] = load_or_write(
            [FeatureFile(Path(folder) / "picture.npy", (width,))],
            rows,
            lambda first: ((block[: min(1000, rows - start)],) for start in range(first, rows, 1000)),
        )
        pictures = ImageStore(
            torch.zeros(rows, 1, 1, 3, dtype=torch.uint8), torch.zeros(3), torch.ones(3), device=torch.device("cpu")
        )
        store = FeatureStore([features], pictures, device=torch.device("cpu"))
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))

        def epoch() -> None:
            for batch in torch.split(order, 128):
                store.unaugmented(batch)

        epoch()  # into the page cache
        seconds = statistics.median(cpu_seconds(epoch) for _ in range(3))
    speed = rows * width * 2 / 1e9 / seconds
    return {
        "id": "P3",
        "benchmark": f"reading {rows:,} cached features of {width}, GB/s",
        "measured": round(speed, 2),
        "target": f">= {READ_TARGET}",
        "met": speed >= READ_TARGET,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(encoder(size(7, 1))), flush=True)
    print(json.dumps(reading(size(100_000, 2000), size(1280, 64))), flush=True)
