"""`python -m ml catalog`: what the service's `app/catalog.json` is made from."""

from __future__ import annotations

import argparse
import sys

from ml import commands


def add(parsers: commands.SubParsers[argparse.ArgumentParser]) -> None:
    """Add the command's parser; it has no options."""
    parsers.add_parser("catalog", help="everything that can be trained, as JSON").set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print the catalog."""
    from ml import catalog

    sys.stdout.write(catalog.text())
    return 0
