"""Which devices this host offers, by its settings and by the device files of its drivers. Free of torch.

A host that has a device file of a GPU claims the GPU: whether torch can use it is another question, and an error where
it cannot.
"""

from __future__ import annotations

import os
from pathlib import Path

from app.settings import Settings

GPU_FILES = ("nvidia[0-9]*", "dxg")  # the latter is the GPU of WSL 2


def names(settings: Settings, dev: Path = Path("/dev")) -> tuple[str, ...]:
    """The devices of `settings.device_names`; `auto` is `cuda` where there is a GPU, else `cpu`.

    Args:
        settings: For `devices`.
        dev: Where device files are.
    """
    return tuple((("cuda" if has_gpu(dev) else "cpu") if name == "auto" else name) for name in settings.device_names)


def has_gpu(dev: Path = Path("/dev")) -> bool:
    """Whether there is a device file of a GPU, and `CUDA_VISIBLE_DEVICES` does not hide all of them."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not is_hidden and any(any(dev.glob(pattern)) for pattern in GPU_FILES)
