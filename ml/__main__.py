"""The command line: `python -m ml COMMAND`; `--help` lists the commands. It works without the service."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import NoReturn

from ml import commands, errors


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: By default those of the process.

    Returns:
        The exit code: 1 after a failure, which is one line on stderr. Wrong usage exits with 2.
    """
    parser = argparse.ArgumentParser(prog="python -m ml", description=__doc__)
    parsers = parser.add_subparsers(dest="command", required=True)
    for command in commands.load_all():
        command.add(parsers)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except commands.EXPECTED as error:
        print(f"{options.command}: {errors.one_line(error)}", file=sys.stderr)
        return 1


def run_and_end() -> NoReturn:
    """Run the command that this process was started for, and end the process without unloading torch.

    Half of a short command was imports and their unloading. Commands leave nothing to an exit handler: what they write
    is closed when they return.
    """
    gc.set_threshold(20_000, 20, 20)  # imports leave little garbage, and looking for it took a fifth of their time
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run_and_end()
