"""A first answer, a frozen training and what is made of it, in a process whose memory is limited below the images.

Arguments: the folder of weights, and a scratch folder. Prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np
import torch

from ml.data.dataset import LabeledImages, Truth
from ml.data.pixel_file import PixelFile
from ml.data.stored_rows import StoredRows
from ml.evaluation import image_outputs
from ml.features import similar_images
from ml.serving import model_archive
from ml.serving.predictor import Predictor
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer

SIDE, COUNT, TESTS, CLASSES = 64, 33_000, 200, 4
ALLOWED = 192 << 20  # bytes beyond those of the imports and of a training on a few images
BLOCK = 1660


def write(path: Path) -> StoredRows:
    """Random images, tinted by their class, which is their number modulo 4."""
    random = np.random.default_rng(0)
    with PixelFile(path, SIDE) as file:
        for _ in range((COUNT + TESTS) // BLOCK):
            block = random.integers(0, 200, (BLOCK, SIDE, SIDE, 3), dtype=np.uint8)
            block[np.arange(BLOCK) % CLASSES == 1, :, :, 0] += 50
            file.append(block)
    return StoredRows.open(path)


def build(spec: TrainingSpec, stored: StoredRows, count: int, cache: Path, weights: Path) -> Trainer:
    """A training on the first images."""
    labels = torch.arange(COUNT + TESTS) % CLASSES
    images = LabeledImages(stored.part(0, count), labels[:count], tuple("abcd"), f"first {count}")
    truth = Truth(None, stored.part(COUNT, COUNT + TESTS), labels[COUNT:])
    return Trainer.build(spec, images, truth=truth, device="cpu", threads=1, weights=weights, cache=cache)


def run(stored: StoredRows, count: int, cache: Path, weights: Path) -> dict[str, object]:
    """Both stages, and what is made of the second."""
    settings = {"network": "small", "pretrained": True, "image_size": SIDE, "epochs": 1, "validation_fraction": 0.02}
    for method in ("forward_probe", "ce"):
        spec = TrainingSpec.model_validate({"method": method, "tune": "none", "batch_size": 128, **settings})
        trainer = build(spec, stored, count, cache, weights)
        list(trainer)
    issues = trainer.label_issues()
    assert issues is not None
    outputs = image_outputs.compute(trainer.method, trainer.evaluator.heads, trainer.inputs.train)
    thumbnails = similar_images.make_thumbnails(stored.part(0, 1000))
    assert similar_images.find(outputs.embeddings[:1000], thumbnails) is not None
    archive = cache / f"model-{count}"
    model_archive.save(archive, trainer)
    predictor = Predictor.load(archive, "cpu")
    images = stored.part(0, 512)
    assert len(predictor.predict_squares(list(images[torch.arange(512)].numpy()))) == 512
    assert trainer.inputs.gaussians is not None
    return {
        "images": count,
        "ranked": len(issues.label_score),
        "gaussians": len(trainer.inputs.gaussians),
        "predictions": len(outputs.probabilities),
    }


def data_bytes() -> int:
    """What counts towards RLIMIT_DATA."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def main() -> None:
    weights, scratch = map(Path, sys.argv[1:])
    stored = write(scratch / "images.npy")
    run(stored, 1500, scratch / "few", weights)
    limit = data_bytes() + ALLOWED
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    mappable = True
    try:
        stored.in_memory()
    except OSError:
        mappable = False
    figures = run(stored, COUNT, scratch / "many", weights)
    print(json.dumps({**figures, "mappable": mappable, "image_bytes": stored.nbytes, "allowed_bytes": ALLOWED}))


if __name__ == "__main__":
    main()
