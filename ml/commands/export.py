"""`python -m ml export`: a trained model as one zip for use elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from ml import commands


def add(parsers: commands.SubParsers[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    parser = parsers.add_parser("export", help="a trained model as one zip: weights for torchvision, manifest, README")
    parser.add_argument("model", type=Path, help="the folder model/ in the --out folder of a training")
    parser.add_argument("--out", type=Path, default=Path("model.zip"), help="the zip; default: model.zip")
    parser.add_argument("--name", help="what its README calls the model")
    commands.add_weights_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the zip and print how far it is from the model when it is opened again."""
    from ml.formats import weights_folder
    from ml.serving import model_archive, model_export

    spec = model_archive.verify(options.model).spec
    record = weights_folder.read_record(options.weights, spec.network) if spec.pretrained else None
    written = model_export.write(options.model, options.out, name=options.name, backbone=record)
    assert written.reopened is not None
    print(f"{options.out}: {', '.join(written.files)}")
    print(f"opened again, no probability of {written.reopened.images} images differs by {written.reopened.largest:.1e}")
    return 0
