"""`python -m tests.endurance chaos|soak [--minutes N] [--smallest] [--stack sqlite|postgres]`: one line a stack."""

from __future__ import annotations

import argparse
import json

from tests.endurance import chaos, soak
from tests.endurance.service import STACKS, running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("chaos", "soak"))
    parser.add_argument("--minutes", type=float, default=10.0, help="how long on each stack")
    parser.add_argument("--smallest", action="store_true", help="one minute, few jobs and clients: does it run at all?")
    parser.add_argument("--stack", choices=STACKS, action="append", help="both by default")
    options = parser.parse_args()
    minutes = 1.0 if options.smallest else options.minutes
    for stack in options.stack or STACKS:
        with running(stack) as service:
            if options.what == "chaos":
                figures = chaos.run(service, minutes=minutes, jobs=4 if options.smallest else 20)
            else:
                figures = soak.run(service, minutes=minutes, clients=8 if options.smallest else soak.CLIENTS)
        print(json.dumps({"what": options.what, "stack": stack, "minutes": minutes} | figures), flush=True)


if __name__ == "__main__":
    main()
