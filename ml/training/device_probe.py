"""`python -m ml.training.device_probe cuda:0 ...`: whether torch can compute on these devices, as one line of JSON.

A process of its own, because it initialises CUDA: whoever starts it may go on forking. The line has `error`: null, or
the `code` and `detail` of the first device that cannot be used; and `ids`: what identifies each GPU on all hosts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch

from ml import errors
from ml.training import devices


def main(names: Sequence[str]) -> None:
    """Check the devices of these names, and print the line."""
    error = None
    ids: list[str] = []
    try:
        for name in names:
            devices.check_usable(name)
            ids += device_ids(name)
    except errors.Failure as failure:
        error = {"code": failure.code, "detail": failure.detail}
    print(json.dumps({"error": error, "ids": ids}))


def device_ids(name: str) -> list[str]:
    """What identifies a whole GPU; nothing for a CPU, nor for a part of a GPU (MIG), which may share it with others."""
    if not name.startswith("cuda"):
        return []
    properties = torch.cuda.get_device_properties(devices.resolve(name))
    return [] if "MIG" in properties.name else [str(properties.uuid)]


if __name__ == "__main__":
    main(sys.argv[1:])
