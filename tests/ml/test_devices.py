"""Which device is chosen, and its arithmetic: what can be tested of GPUs without one."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ml import errors
from ml.training import devices


@pytest.fixture
def arithmetic_kept() -> Iterator[None]:
    """The flags belong to the process."""
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
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
    assert torch.backends.cudnn.conv.fp32_precision == precision
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
    with pytest.raises(RuntimeError, match="shape"), devices.catch_out_of_memory("a step"):
        torch.zeros(2, 3).view(7)  # "shape '[7]' is invalid"


@pytest.mark.parametrize(("size", "rounded"), [(100, 96), (8, 8), (7, 4), (3, 2), (2, 2), (1, None), (None, None)])
def test_F18_a_batch_size_is_one_that_people_write(size: int | None, rounded: int | None) -> None:
    assert errors.OutOfMemory("too much", size).fitting_batch_size == rounded
