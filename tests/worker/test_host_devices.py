"""Which devices a host claims, by its device files."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings
from worker import host_devices


@pytest.mark.parametrize(
    ("devices", "files", "names"),
    [
        ("auto", ["nvidia0", "nvidiactl"], ("cuda",)),
        ("auto", ["dxg"], ("cuda",)),  # WSL 2
        ("auto", ["nvidiactl", "nvidia-uvm"], ("cpu",)),  # a driver, and no GPU
        ("auto", [], ("cpu",)),
        ("cpu", ["nvidia0"], ("cpu",)),
        ("cuda:0,cuda:1", [], ("cuda:0", "cuda:1")),
    ],
)
def test_F27_auto_is_a_gpu_where_there_is_a_device_file(
    devices: str, files: list[str], names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in files:
        (tmp_path / name).touch()

    assert host_devices.names(Settings(devices=devices), tmp_path) == names


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_is_hidden_from_the_process_is_none(
    hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (tmp_path / "nvidia0").touch()

    assert not host_devices.has_gpu(tmp_path)
