"""Chooses the device and its arithmetic, and gives its errors their types.

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
from ml.distributed import process_group

# Messages of errors that have no type of their own. cuDNN finds no engine where none fits into the memory that is free.
EXHAUSTED = re.compile(
    r"can't allocate memory|not enough memory|out of memory|unable to find an engine"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|CUDNN_STATUS_INTERNAL_ERROR_\w*ALLOCATION_FAILED",
    re.IGNORECASE,
)
NO_KERNELS = re.compile(r"no kernel image is available", re.IGNORECASE)
# Any other error of CUDA is the device's, but for an assertion in a kernel, which the arguments of an operation break.
DEVICE_FAILED = re.compile(
    r"CUDA error|CUDA driver|CUDA-capable device|CUDA unknown error|NVIDIA driver|No CUDA GPUs|cuDNN error",
    re.IGNORECASE,
)
KERNEL_ASSERTION = "device-side assert"
CONTEXT_BYTES = 1 << 30  # of CUDA itself in this process, an upper bound
NEIGHBOUR_SHARE = 0.1  # of a GPU's memory: what other processes hold below this is no reason for running out of it
HALF_SINCE = (7, 0)  # compute capability from which matrix products in fp16 have instructions of their own
CUBLAS_WORKSPACE = ":4096:8"  # one of the two with which cuBLAS repeats its results; read at its first use


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
    # whether deterministic or not: a later training of this process may be, and cuBLAS reads it once
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
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


def network_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What the network computes in while it is trained, by `TrainingSpec.precision`.

    On `auto` the fastest that keeps its quality: bf16, where a GPU has no instructions for it fp16 with loss scaling
    (`ml.training.loss_scaling`), and f32 elsewhere.
    """
    chosen = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision in chosen:
        return chosen[precision]
    if has_fast_bf16(device):
        return torch.bfloat16
    return torch.float16 if _has_fast_fp16(device) else torch.float32


def _has_fast_fp16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= HALF_SINCE


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 instructions. Without them bf16 is emulated and many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    queries = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # there are no public ones before torch 2.12
    return any(getattr(torch.cpu, name, lambda: False)() for name in queries)


@contextlib.contextmanager
def without_search() -> Iterator[None]:
    """Inside, cuDNN does not time its algorithms: of batches that come once, that would cost more than it saves."""
    searches = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = searches


@contextlib.contextmanager
def catch_failures(what: str, fitting: Callable[[], int | None] = lambda: None) -> Iterator[None]:
    """Turn every way of running out of memory, and the errors of a device, into failures (F18, F27).

    Args:
        what: What runs inside, for the message.
        fitting: Returns a batch size that should fit, or None.

    Raises:
        OutOfMemory: The memory of the device or of the host ran out.
        DeviceUnavailable: The device reports an error.
        DeviceUnsupported: torch has no kernels for the device.
    """
    try:
        yield
    except process_group.RankFailure:  # though it may quote an error of CUDA, another process had that
        raise
    except (RuntimeError, MemoryError) as error:  # most of these errors have no type
        message = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or EXHAUSTED.search(message):
            held = neighbours_bytes()
            beside = f" while other processes held {held / 1e9:.1f} GB of the GPU" if held else ""
            raise errors.OutOfMemory(f"{what} ran out of memory{beside}", fitting(), by_neighbour=held > 0) from error
        if NO_KERNELS.search(message):
            raise _unsupported() from error
        if DEVICE_FAILED.search(message) and KERNEL_ASSERTION not in message:
            raise errors.DeviceUnavailable(f"{what} failed: {first_line(error)}") from error
        raise


def check_usable(name: str) -> None:
    """Compute a little on the device of a name, as torch tells no other way whether it can.

    On a GPU this initialises CUDA, so a process that forks others must not call it.

    Raises:
        DeviceUnavailable: The device cannot be used; the reason is the driver's or torch's.
        DeviceUnsupported: torch has no kernels for it.
    """
    if name.startswith("cuda"):
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # `is_available` has no reason
        except (RuntimeError, AssertionError) as error:
            raise errors.DeviceUnavailable(f"torch cannot use a GPU: {first_line(error)}") from error
    try:
        device = resolve(name)
    except errors.UnknownName as error:
        raise errors.DeviceUnavailable(error.detail) from error
    with catch_failures(f"a first computation on {device}"):
        image = torch.ones(1, 4, 8, 8, device=device)
        convolved = torch.nn.functional.conv2d(image, torch.ones(4, 4, 3, 3, device=device))
        float((convolved.flatten(1) @ convolved.flatten(1).T).sum())  # waits for the device


def neighbours_bytes() -> int:
    """Bytes of the current GPU that other processes hold; 0 below `NEIGHBOUR_SHARE`, and where none is used."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # untyped in torch
        return 0
    free, total = torch.cuda.mem_get_info()
    held = total - free - torch.cuda.memory_reserved() - CONTEXT_BYTES
    return held if held > NEIGHBOUR_SHARE * total else 0


def limit_memory(name: str, fraction: float) -> None:
    """Let this process allocate at most a fraction of the memory of a GPU; does nothing for a CPU.

    Args:
        name: Of the device, as of `resolve`.
        fraction: In (0, 1].
    """
    if fraction < 1.0 and (device := resolve(name)).type == "cuda":
        torch.cuda.set_per_process_memory_fraction(fraction, device)


def precision_note(precision: str, device: torch.device) -> str | None:
    """What the user of a GPU without bf16 instructions should know of the precision of a training; else None.

    Args:
        precision: As `TrainingSpec.precision`.
        device: That trains.
    """
    if device.type != "cuda" or has_fast_bf16(device) or precision == "f32":
        return None
    if precision == "bf16":
        return (
            "This GPU has no instructions for bf16 and emulates it, which is many times slower: set precision to auto."
        )
    if _has_fast_fp16(device):
        return "This GPU has no instructions for bf16: the network computes in fp16, with loss scaling."
    return (
        "This GPU has fast instructions for neither bf16 nor fp16: the network computes in f32, which is slower and "
        "takes more memory."
        if precision == "auto"
        else "This GPU has no fast instructions for fp16: set precision to f32."
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message; torch appends advice."""
    return str(error).strip().partition("\n")[0]


def _unsupported() -> errors.DeviceUnsupported:
    return errors.DeviceUnsupported(
        torch.cuda.get_device_name(), torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    )
