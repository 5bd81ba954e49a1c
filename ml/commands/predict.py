"""`python -m ml predict`: the classes of images, by a model that was exported or trained here."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ml import commands


def add(parsers: commands.SubParsers[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    parser = parsers.add_parser("predict", help="the classes of images, one line of JSON for each")
    parser.add_argument("model", type=Path, help="a zip that export wrote, its folder, or model/ of a training")
    parser.add_argument("images", type=Path, nargs="+", help="JPEG, PNG, WebP, BMP or GIF")
    parser.add_argument("--top-k", type=int, default=5, help="classes of each image, the likeliest first; default: 5")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, or one GPU as cuda:1")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print one line of JSON for each image, as it is predicted."""
    from ml.data import decoding
    from ml.serving import export_reader

    predictor = export_reader.open_model(options.model, options.device)
    for path in options.images:
        (prediction,) = predictor.predict([decoding.decode(path.read_bytes())])
        order = prediction.probabilities.argsort()[::-1][: options.top_k]
        line: dict[str, Any] = {
            "image": str(path),
            "top_k": [
                {"label": predictor.classes[i], "score": round(float(prediction.probabilities[i]), 6)} for i in order
            ],
            "gaussian": None if prediction.gaussian is None else dataclasses.asdict(prediction.gaussian),
        }
        print(json.dumps(line, ensure_ascii=False, allow_nan=False))
    return 0
