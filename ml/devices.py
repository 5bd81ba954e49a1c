"""Where and how the arithmetic runs: device, precision, running out of memory.

It knows nothing of what is computed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from ml import errors

CPU_EXHAUSTED = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)


def resolve(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` -> a device that is there; UnknownName otherwise."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise errors.UnknownName("this machine has no CUDA device", hint="set device to auto or cpu", code="no_device")
    return torch.device(name)


def half_precision(precision: str, device: torch.device) -> bool:
    """Whether the network computes in bf16: if asked to, or on `auto` where the device is faster with it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # a CPU without such instructions emulates them, many times slower; there is no public question before torch 2.12
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)


@contextlib.contextmanager
def bounded_memory(batch_size: int, where: str) -> Iterator[None]:
    """Turn every way of running out of memory into OutOfMemory (F18)."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise errors.OutOfMemory(batch_size, where) from error
    except RuntimeError as error:  # the CPU allocator's own complaint has no type
        if CPU_EXHAUSTED.search(str(error)):
            raise errors.OutOfMemory(batch_size, where) from error
        raise
