"""Checkpoints under damage: whatever happens to the newest, an older valid one is found."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import errors
from ml.training import checkpoint
from ml.training.checkpoint import Newest, State

OWNER = {"config_hash": "c", "data_hash": "d"}


def state(step: int, score: float | None = None) -> State:
    tensors = {
        "method/weight": torch.full((3, 3), float(step)),
        "order": torch.arange(step),
        "log/margins": torch.tensor([1.5, torch.nan], dtype=torch.float16),
        "generator/order": torch.tensor([step % 256], dtype=torch.uint8),
    }
    return State(tensors, {"step": step, "score": score, "history": [0.1 + step / 3], **OWNER})


def newest(*folders: Path) -> Newest:
    return checkpoint.newest(folders, **OWNER)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, state(7))
    result = newest(tmp_path)

    assert (result.path, result.skipped, path.name) == (path, (), "step-7")
    assert result.state is not None
    assert result.state.facts == state(7).facts
    for name, tensor in state(7).tensors.items():
        torch.testing.assert_close(result.state.tensors[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_the_newest_of_several_attempts_is_found(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "attempt-1", state(9))
    checkpoint.write(tmp_path / "attempt-2", state(4))
    checkpoint.write(tmp_path / "attempt-3", state(9))

    result = newest(tmp_path / "attempt-1", tmp_path / "attempt-2", tmp_path / "attempt-3", tmp_path / "attempt-4")
    assert result.path == tmp_path / "attempt-3" / "step-9"
    assert newest(tmp_path / "attempt-4") == Newest(None, None, ())


@settings(max_examples=40)
@given(
    file=st.sampled_from([checkpoint.TENSORS, checkpoint.FACTS, checkpoint.MANIFEST]),
    where=st.floats(0, 0.999),
    bit=st.integers(0, 7),
)
def test_F17_any_flipped_bit_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, file: str, where: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("attempt")
    older = checkpoint.write(folder, state(1))
    damaged = checkpoint.write(folder, state(2)) / file
    content = bytearray(damaged.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    damaged.write_bytes(content)
    result = newest(folder)

    assert result.state is not None
    assert (result.path, result.skipped[0].path.name) == (older, "step-2")


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.FACTS, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "folder"])
def test_F17_a_damaged_file_means_the_one_before(tmp_path: Path, file: str, damage: str) -> None:
    checkpoint.write(tmp_path, state(1))
    target = checkpoint.write(tmp_path, state(2)) / file
    content = target.read_bytes()
    target.unlink()
    if damage == "folder":
        target.mkdir()
    elif damage != "missing":
        target.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    result = newest(tmp_path)

    assert result.state is not None
    assert result.state.step == 1
    assert result.skipped[0].detail


def test_a_checkpoint_of_another_training_is_skipped_and_reported(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, state(3))
    result = checkpoint.newest([tmp_path], config_hash="c", data_hash="other")

    assert result.state is None
    assert "data_hash differs" in result.skipped[0].detail


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, score in enumerate([0.1, 0.9, 0.3, None, 0.4, 0.2]):
        checkpoint.write(tmp_path, state(step, score))

    assert steps(tmp_path) == [1, 4, 5]


def test_after_falling_back_the_abandoned_steps_go(tmp_path: Path) -> None:
    """Otherwise the damaged step 20 would count as one of the last two for ever."""
    checkpoint.write(tmp_path, state(10))
    (checkpoint.write(tmp_path, state(20)) / checkpoint.TENSORS).write_bytes(b"")
    checkpoint.write(tmp_path, state(15))

    assert steps(tmp_path) == [10, 15]


def test_the_same_step_is_written_again_over_a_damaged_one(tmp_path: Path) -> None:
    (checkpoint.write(tmp_path, state(10)) / checkpoint.FACTS).write_bytes(b"")
    checkpoint.write(tmp_path, state(10))

    assert newest(tmp_path).skipped == ()


def test_what_a_killed_writer_left_is_ignored_and_removed(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, state(1))
    shutil.copytree(tmp_path / "step-1", tmp_path / "step-2.tmp-99")

    assert newest(tmp_path).path == tmp_path / "step-1"
    checkpoint.write(tmp_path, state(3))
    assert steps(tmp_path) == [1, 3]


def test_not_a_number_is_refused_in_facts(tmp_path: Path) -> None:
    """JSON has no NaN: better no checkpoint than one that strict readers cannot read."""
    broken = State({}, {"step": 1, "loss": float("nan"), **OWNER})
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.write(tmp_path, broken)
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import os, resource, signal, sys, time
from pathlib import Path
import torch
from ml.training import checkpoint

def state(step):
    tensors = {"weight": torch.full((300, 300), float(step))}
    return checkpoint.State(tensors, {"step": step, "config_hash": "c", "data_hash": "d"})

folder = Path(sys.argv[1])
"""
FULL_DISK = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoint.write(folder, state(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoint.write(folder, state(2))
except OSError as error:
    sys.exit(error.errno)
"""
KILLED = """
for delay_ms in (1, 3, 7, 13, 23):
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        for step in range(1, 100_000):
            checkpoint.write(folder / str(delay_ms), state(step))
            os.write(write, b".")
    for _ in range(3):
        os.read(read, 1)
    time.sleep(delay_ms / 1000)  # the moment of the kill, not a wait for anything
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(write)
    acknowledged = 3 + len(os.read(read, 100_000))
    found = checkpoint.newest([folder / str(delay_ms)], config_hash="c", data_hash="d")
    print(delay_ms, found.state.step >= acknowledged, found.skipped)
"""


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT + script, str(folder)]
    return subprocess.run(command, check=False, timeout=250, stdout=subprocess.PIPE, text=True)


def test_F15_a_full_disk_is_an_os_error_and_costs_no_checkpoint(tmp_path: Path) -> None:
    """A limit on file sizes stands in for the full disk: the same write fails in the same place."""
    assert run(FULL_DISK, tmp_path).returncode == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert newest(tmp_path).path == tmp_path / "step-1"


def test_F16_a_writer_killed_at_any_moment_leaves_a_valid_checkpoint(tmp_path: Path) -> None:
    assert run(KILLED, tmp_path).stdout.splitlines() == [f"{delay} True ()" for delay in (1, 3, 7, 13, 23)]


def test_optimizer_state_survives_with_the_layout_of_its_weights() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last))
    optimizers = [torch.optim.SGD([weight], lr=0.1, momentum=0.9) for _ in range(2)]
    weight.grad = torch.randn_like(weight)
    optimizers[0].step()
    tensors, facts = checkpoint.pack_optimizers(optimizers[:1])
    checkpoint.unpack_optimizers(optimizers[1:], tensors, json.loads(json.dumps(facts)))

    one, two = (o.state[weight]["momentum_buffer"] for o in optimizers)
    assert torch.equal(one, two)
    assert two.stride() == weight.stride()


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, state(1)).rename(tmp_path / "step-2")
    with pytest.raises(errors.CheckpointInvalid, match="manifest is of step 1"):
        checkpoint.verify(path)


def test_a_checkpoint_of_another_format_is_not_read(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, state(1))
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest | {"format": checkpoint.FORMAT + 1}))

    with pytest.raises(errors.CheckpointInvalid, match=f"has format {checkpoint.FORMAT + 1}, not {checkpoint.FORMAT}"):
        checkpoint.read(path)
