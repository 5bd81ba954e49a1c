"""`python -m ml convert`: a data set as its authors publish it, made into a zip that the service accepts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ml import commands


def add(parsers: commands.SubParsers[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    parser = parsers.add_parser("convert", help="CIFAR and Clothing1M as published -> a zip that the service accepts")
    parser.add_argument("data", type=Path, help="the folder or archive with the original files")
    parser.add_argument("archive", type=Path, help="the zip to write: images, train.csv and test.csv")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the zip, and print what was left out."""
    from ml.data.published import conversion

    dataset = conversion.convert(options.data, options.archive)
    for path, reason in dataset.left_out:
        print(f"left out {path}: {reason}", file=sys.stderr)
    print(f"{options.archive}: {len(dataset.names)} images; columns {', '.join(dataset.labels)}")
    return 0
