"""`python -m ml convert`: data sets as they were published, made into a zip that the service takes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ml import commands


def add(parsers: commands.Commands[argparse.ArgumentParser]) -> None:
    """The command's options."""
    parser = parsers.add_parser("convert", help="CIFAR and Clothing1M as published -> a zip that the service takes")
    parser.add_argument("data", type=Path, help="the folder or zip with the original files")
    parser.add_argument("archive", type=Path, help="the zip to write: pictures, train.csv and test.csv")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the zip, and say what was left out."""
    from ml.layouts import archive

    found = archive.convert(options.data, options.archive)
    for line in found.left_out:
        print(f"left out {line}", file=sys.stderr)
    print(f"{options.archive}: {len(found.names)} pictures; columns {', '.join(found.labels)}")
    return 0
