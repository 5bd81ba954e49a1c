"""The command line: `python -m ml COMMAND`, as `--help` lists them. It needs no service, and no service needs it."""

from __future__ import annotations

import argparse
import sys

from ml import errors
from ml.commands import EXPECTED, catalog, convert, figures, measure, scenes, study, train


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a failure is one line on stderr and exit code 1, wrong usage 2."""
    parser = argparse.ArgumentParser(prog="python -m ml", description=__doc__)
    parsers = parser.add_subparsers(dest="command", required=True)
    for command in (train, measure, figures, study, scenes, convert, catalog):
        command.add(parsers)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except EXPECTED as error:
        print(f"{options.command}: {errors.one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
