"""Which device is chosen, and its arithmetic: what can be tested of GPUs without one."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ml import errors
from ml.distributed.process_group import RankFailure
from ml.training import device_probe, devices, memory


@pytest.fixture
def arithmetic_kept() -> Iterator[None]:
    """The flags belong to the process."""
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    before = [part.fp32_precision for part in parts]
    yield
    for part, precision in zip(parts, before, strict=True):
        part.fp32_precision = precision
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("name", "count", "device"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_a_device_is_found_by_name(name: str, count: int, device: str) -> None:
    assert str(devices.resolve_among(name, count)) == device


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [("cuda", 0, "no CUDA device"), ("cuda:1", 1, "only cuda:0"), ("cuda:4", 3, "only cuda:0 to cuda:2"),
     ("gpu", 1, "no device is called 'gpu'"), ("cuda:", 1, "no device is called"), ("cuda:-1", 1, "no device")],
)  # fmt: skip
def test_a_device_that_is_not_there_is_named(name: str, count: int, message: str) -> None:
    with pytest.raises(errors.UnknownName) as raised:
        devices.resolve_among(name, count)

    assert raised.value.code == "no_device"
    assert message in raised.value.detail


@pytest.mark.parametrize(
    ("cpuinfo", "threads", "described"),
    [
        ("processor\t: 0\nmodel name\t: Xeon 6\n\nmodel name\t: Xeon 6\n", 2, "2 × Xeon 6, 2 threads"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", 1, f"2 × CPU ({platform.machine()}), 1 thread"),
    ],
)
def test_a_cpu_is_described_by_its_model_where_the_kernel_names_one(
    tmp_path: Path, cpuinfo: str, threads: int, described: str
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    assert devices.describe(["cpu", "cpu"], threads, file) == described


@pytest.mark.usefixtures("arithmetic_kept")
@pytest.mark.parametrize(
    ("exact", "deterministic", "precision"),
    [(True, False, "ieee"), (False, False, "tf32"), (False, True, "ieee"), (True, True, "ieee")],
)
def test_what_stays_f32_is_exact_where_asked(exact: bool, deterministic: bool, precision: str) -> None:
    devices.set_arithmetic(exact=exact, deterministic=deterministic, search=True)

    assert torch.backends.cuda.matmul.fp32_precision == precision
    assert torch.backends.cudnn.conv.fp32_precision == precision  # type: ignore[attr-defined]
    assert torch.backends.cudnn.benchmark != deterministic
    assert torch.are_deterministic_algorithms_enabled() == deterministic


@pytest.mark.usefixtures("arithmetic_kept")
def test_algorithms_are_not_searched_for_where_every_batch_differs() -> None:
    devices.set_arithmetic(exact=True, deterministic=False, search=False)

    assert not torch.backends.cudnn.benchmark


def test_configuring_a_cpu_changes_nothing() -> None:
    before = (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.benchmark)
    devices.configure(torch.device("cpu"), exact=True, deterministic=True)

    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.benchmark) == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_F18_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shape"), devices.catch_failures("a step"):
        torch.zeros(2, 3).view(7)  # "shape '[7]' is invalid"


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "FIND was unable to find an engine to execute this computation",
    ],
)
def test_F18_libraries_without_memory_are_out_of_memory(message: str) -> None:
    with pytest.raises(errors.OutOfMemory) as raised, devices.catch_failures("a step", lambda: 24):
        raise RuntimeError(message)

    assert raised.value.fitting_batch_size == 24


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with ..."), "unspecified launch"),
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "EXECUTION_FAILED"),
    ],
)
def test_F27_an_error_of_the_gpu_is_the_devices(error: RuntimeError, detail: str) -> None:
    with pytest.raises(errors.DeviceUnavailable, match=detail) as raised, devices.catch_failures("a step"):
        raise error

    assert (raised.value.code, "\n" in raised.value.detail) == ("device_unavailable", False)


def test_F27_the_error_of_another_rank_is_not_this_ones() -> None:
    with pytest.raises(RankFailure), devices.catch_failures("a step"):
        raise RankFailure("another process has ended: NCCL error: unhandled cuda error, CUDA error: out of memory")


def test_F27_an_assertion_in_a_kernel_is_not_the_devices() -> None:
    """It is raised for arguments that are wrong, such as a label that does not exist."""
    with pytest.raises(RuntimeError, match="assert") as raised, devices.catch_failures("a step"):
        raise RuntimeError("CUDA error: device-side assert triggered")

    assert not isinstance(raised.value, errors.Failure)


def test_F27_a_gpu_without_kernels_is_named_with_its_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GTX 1080")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    with pytest.raises(errors.DeviceUnsupported) as raised, devices.catch_failures("a step"):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    assert raised.value.code == "device_unsupported"
    assert raised.value.detail.startswith("GTX 1080 has compute capability 6.1,")
    assert "sm_75, sm_90" in raised.value.detail


def test_F27_what_the_driver_says_is_why_a_gpu_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update ...")

    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(errors.DeviceUnavailable) as raised:
        devices.check_usable("cuda")

    assert raised.value.detail.endswith("is too old (found version 11040).")
    devices.check_usable("cpu")


def test_F27_a_gpu_that_is_not_there_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(errors.DeviceUnavailable, match="only cuda:0"):
        devices.check_usable("cuda:1")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A driver with a GPU of 80 GB, of which so much is free, reserved by this process and allowed to it."""

    def set_memory(free: float, reserved: float, fraction: float = 1.0) -> None:
        for name, value in {
            "is_initialized": True,
            "mem_get_info": (int(free * 1e9), int(80e9)),
            "memory_reserved": int(reserved * 1e9),
            "memory_allocated": int(reserved * 1e9 / 2),
            "get_per_process_memory_fraction": fraction,
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)

    return set_memory


@pytest.mark.parametrize(("free", "reserved", "by_neighbour"), [(1, 78, False), (1, 40, True), (72, 0.5, False)])
def test_F18_it_is_known_whether_other_processes_fill_the_gpu(
    free: float, reserved: float, by_neighbour: bool, gpu: Callable[..., None]
) -> None:
    gpu(free, reserved)
    with pytest.raises(errors.OutOfMemory) as raised, devices.catch_failures("a step"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    assert raised.value.by_neighbour == by_neighbour
    assert ("other processes held 37.9 GB" in raised.value.detail) == by_neighbour


def test_F18_a_process_counts_on_its_share_of_the_gpu_alone(gpu: Callable[..., None]) -> None:
    gpu(free=60, reserved=10, fraction=0.5)
    assert memory.free_bytes(torch.device("cuda", 0)) == 35e9  # 40 - 10, and half of what is reserved
    gpu(free=20, reserved=10, fraction=0.5)
    assert memory.free_bytes(torch.device("cuda", 0)) == 25e9


@pytest.mark.parametrize(("fraction", "limits"), [(0.4, [(0.4, torch.device("cuda", 1))]), (1.0, [])])
def test_the_memory_of_a_process_is_limited_where_it_is_asked_for(
    fraction: float, limits: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *arguments: calls.append(arguments))
    devices.limit_memory("cuda:1", fraction)
    devices.limit_memory("cpu", fraction)

    assert calls == limits


PASCAL, TURING = (6, 1), (7, 5)


@pytest.mark.parametrize(
    ("precision", "capability", "dtype", "says"),
    [
        ("auto", TURING, torch.float16, "computes in fp16, with loss scaling"),
        ("fp16", TURING, torch.float16, "computes in fp16, with loss scaling"),
        ("auto", PASCAL, torch.float32, "computes in f32"),
        ("fp16", PASCAL, torch.float16, "set precision to f32"),
        ("bf16", TURING, torch.bfloat16, "emulates it"),
        ("f32", TURING, torch.float32, None),
    ],
)
def test_a_gpu_without_bf16_is_told_of(
    precision: str,
    capability: tuple[int, int],
    dtype: torch.dtype,
    says: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    note = devices.precision_note(precision, gpu)

    assert (note is None) if says is None else (says in str(note))
    assert devices.network_dtype(precision, gpu) == dtype
    assert not devices.uses_bf16("auto", gpu)  # for predictions and features
    assert devices.precision_note(precision, cpu) is None


def test_auto_takes_bf16_where_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    bf16 = devices.has_fast_bf16(torch.device("cpu"))

    assert devices.network_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    assert devices.network_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if bf16 else torch.float32)
    assert devices.precision_note("auto", torch.device("cuda", 0)) is None


@pytest.mark.parametrize(
    ("device", "name", "ids"),
    [("cuda", "H200", ["GPU-1"]), ("cuda", "H200 MIG 1g.18gb", []), ("cpu", "", [])],
)
def test_F30_a_whole_gpu_is_identified(device: str, name: str, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name=name, uuid="GPU-1"))

    assert device_probe.device_ids(device) == ids


def test_algorithms_are_not_searched_for_within_a_probe() -> None:
    before = torch.backends.cudnn.benchmark
    with devices.without_search():
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.parametrize(("size", "rounded"), [(100, 96), (8, 8), (7, 4), (3, 2), (2, 2), (1, None), (None, None)])
def test_F18_a_batch_size_is_one_that_people_write(size: int | None, rounded: int | None) -> None:
    assert errors.OutOfMemory("too much", size).fitting_batch_size == rounded
