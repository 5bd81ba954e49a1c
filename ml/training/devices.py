"""Chooses the device and its arithmetic, and reports when its memory runs out.

`configure` is called once when a training or a predictor starts, since the settings hold for the whole process.

Operations in f32 use IEEE f32 if the spec says so (`precision: f32`), if results must repeat (`deterministic`), and for
predictions, which must not depend on the rest of their batch by more than rounding. Otherwise a GPU may use TF32: its
10 bits of mantissa are more than the 7 of bf16, which the network computes in. CPUs have no such settings.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ml import errors

CPU_EXHAUSTED = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
CUBLAS_WORKSPACE = ":4096:8"  # one of the two with which cuBLAS repeats its results; read when CUDA starts


def resolve(name: str) -> torch.device:
    """The device of a name: `auto`, `cpu`, `cuda` or `cuda:N`. Raises UnknownName (`no_device`) if there is none."""
    return resolve_among(name, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def resolve_among(name: str, count: int) -> torch.device:
    """As `resolve`, on a machine with `count` CUDA devices. A GPU always has its number."""
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name == "cpu":
        return torch.device(name)
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise errors.UnknownName(
            f"no device is called {name!r}", hint="use auto, cpu, cuda or cuda:1", code="no_device"
        )
    number = int(match[1] or 0)
    if number >= count:
        available = (
            "no CUDA device" if count == 0 else f"only cuda:0 to cuda:{count - 1}" if count > 1 else "only cuda:0"
        )
        raise errors.UnknownName(
            f"this machine has {available}, but {name} is asked for", hint="set device to auto or cpu", code="no_device"
        )
    return torch.device("cuda", number)


def describe(names: Sequence[str], threads: int, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What a training on these devices runs on, in words, such as `2 × NVIDIA H200` or a CPU and its threads.

    Args:
        names: One for each process of the training; as for `resolve`, which also says what is raised.
        threads: CPU threads of each process.
        cpuinfo: The kernel's list of processors, which names the CPU's model.
    """
    device, count = resolve(names[0]), len(names)
    if device.type == "cuda":
        model = torch.cuda.get_device_name(device)
    else:
        model = f"{_cpu_model(cpuinfo)}, {threads} thread{'s' * (threads > 1)}"
    return model if count == 1 else f"{count} × {model}"


def _cpu_model(cpuinfo: Path) -> str:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(\S.*)$", text, re.MULTILINE)  # arm64 lists none
    return match[1].strip() if match else f"CPU ({platform.machine()})"


def configure(device: torch.device, *, exact: bool, deterministic: bool = False, shapes_repeat: bool = True) -> None:
    """Make a GPU the current device and set the arithmetic of the process. Does nothing for a CPU.

    Args:
        device: The device to compute on.
        exact: IEEE f32 instead of TF32.
        deterministic: Algorithms that give the same bits at every run, where there are any.
        shapes_repeat: Batches have few shapes, so searching the fastest algorithms of each pays.
    """
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)  # too late for a CUDA that has started
    set_arithmetic(exact=exact, deterministic=deterministic, search=shapes_repeat)
    torch.cuda.set_device(device)


def set_arithmetic(*, exact: bool, deterministic: bool, search: bool) -> None:
    """Set torch's flags for the arithmetic of GPUs; `search` times algorithms. See `configure`."""
    # by the names of torch 2.9: the older ones raise once these are set
    precision = "ieee" if exact or deterministic else "tf32"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]  # untyped in torch
    torch.backends.cudnn.rnn.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = search and not deterministic  # it may choose another algorithm in every process
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether the network computes in bf16: by `TrainingSpec.precision`, and on `auto` where the device is faster."""
    return has_fast_bf16(device) if precision == "auto" else precision == "bf16"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 instructions. Without them bf16 is emulated and many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    queries = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # there are no public ones before torch 2.12
    return any(getattr(torch.cpu, name, lambda: False)() for name in queries)


@contextlib.contextmanager
def catch_out_of_memory(what: str, fitting: Callable[[], int | None] = lambda: None) -> Iterator[None]:
    """Turn every way of running out of memory into OutOfMemory (F18).

    Args:
        what: What runs inside, for the message.
        fitting: Returns a batch size that should fit, or None.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # the CPU allocator's own complaint has no type
        is_typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_typed and not CPU_EXHAUSTED.search(str(error)):
            raise
        raise errors.OutOfMemory(f"{what} ran out of memory", fitting()) from error
