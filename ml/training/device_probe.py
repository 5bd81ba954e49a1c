"""`python -m ml.training.device_probe cuda:0 ...`: whether torch can compute on these devices, as one line of JSON.

A process of its own, because it initialises CUDA: whoever starts it may go on forking. The line is {"error": null}, or
{"error": {"code": ..., "detail": ...}} of the first device that cannot be used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ml import errors
from ml.training import devices


def main(names: Sequence[str]) -> None:
    """Check the devices of these names, and print the line."""
    error = None
    try:
        for name in names:
            devices.check_usable(name)
    except errors.Failure as failure:
        error = {"code": failure.code, "detail": failure.detail}
    print(json.dumps({"error": error}))


if __name__ == "__main__":
    main(sys.argv[1:])
