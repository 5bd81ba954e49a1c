"""Which device computes, in which arithmetic, and what happens when its memory runs out.

`settle` is called once when a training or a predictor starts, since torch keeps all of it for the whole process. It
knows nothing of what is computed; how much memory that takes is `ml.training.memory`'s question.

What is left in f32 is IEEE f32 where somebody asked for it (`precision: f32`), where results must repeat
(`deterministic`) and in every prediction, which must not depend on its companions in a batch by more than rounding.
Elsewhere a GPU may use TF32, whose 10 bits of mantissa are more than the 7 of the bf16 beside it. A CPU is left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator

import torch

from ml import errors

CPU_EXHAUSTED = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
CUBLAS_WORKSPACE = ":4096:8"  # one of the two with which cuBLAS repeats its results; read when CUDA starts


def resolve(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` -> a device that is there; UnknownName (`no_device`) otherwise."""
    return among(name, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def among(name: str, count: int) -> torch.device:
    """The device of this name on a machine with `count` CUDA devices, a GPU always with its number."""
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name == "cpu":
        return torch.device(name)
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if found is None:
        raise errors.UnknownName(
            f"no device is called {name!r}", hint="use auto, cpu, cuda or cuda:1", code="no_device"
        )
    number = int(found[1] or 0)
    if number >= count:
        there = "no CUDA device" if count == 0 else f"only cuda:0 to cuda:{count - 1}" if count > 1 else "only cuda:0"
        raise errors.UnknownName(
            f"this machine has {there}, but {name} is asked for", hint="set device to auto or cpu", code="no_device"
        )
    return torch.device("cuda", number)


def settle(device: torch.device, *, exact: bool, deterministic: bool = False, shapes_repeat: bool = True) -> None:
    """Make `device` the current one and set the arithmetic of the process (see above); nothing to do for a CPU.

    Where `shapes_repeat`, each shape of a batch is worth a search for its fastest algorithms.
    """
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)  # too late for a CUDA that has started
    arithmetic(exact=exact, deterministic=deterministic, searching=shapes_repeat)
    torch.cuda.set_device(device)


def arithmetic(*, exact: bool, deterministic: bool, searching: bool) -> None:
    """The flags of a GPU's arithmetic. Set by the names torch has had since 2.9: reading the older ones then raises."""
    rounded = "ieee" if exact or deterministic else "tf32"
    torch.backends.cuda.matmul.fp32_precision = rounded
    torch.backends.cudnn.conv.fp32_precision = rounded  # type: ignore[attr-defined]  # untyped in torch
    torch.backends.cudnn.rnn.fp32_precision = rounded  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = searching and not deterministic  # it may choose another algorithm in every process
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def half_precision(precision: str, device: torch.device) -> bool:
    """Whether the network computes in bf16: if asked to, or on `auto` where the device is faster with it."""
    return fast_bf16(device) if precision == "auto" else precision == "bf16"


def fast_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16: without them it is emulated, many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # there is no public question before torch 2.12
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)


@contextlib.contextmanager
def bounded_memory(what: str, fitting: Callable[[], int | None] = lambda: None) -> Iterator[None]:
    """Turn every way of running out of memory into OutOfMemory (F18); `fitting` tells a batch size that should fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # the CPU allocator's own complaint has no type
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not CPU_EXHAUSTED.search(str(error)):
            raise
        raise errors.OutOfMemory(f"{what} ran out of memory", fitting()) from error
