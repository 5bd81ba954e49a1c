"""What memory a training needs is estimated before its first step, and the estimate changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml import errors
from ml.data.dataset import LabeledImages, Truth
from ml.data.stored_rows import StoredRows
from ml.method import Batch, Optimizers, Unlabelled
from ml.training import host_cpus, host_memory, memory, memory_check, store_choice
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import SIDE, same

Specs = Callable[..., TrainingSpec]
GIGABYTE = 10**9


def line(fixed: float, per_image: float) -> memory.LinearCost:
    return memory.LinearCost(torch.tensor([fixed], dtype=torch.float64), torch.tensor([per_image], dtype=torch.float64))


def test_two_small_tries_tell_the_peak_of_a_large_one() -> None:
    """Exactly: the same operations run, each on more images."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(500)
    )
    network(torch.zeros(2, 3, 16, 16))

    def work(images: int) -> None:
        network(torch.zeros(images, 3, 16, 16)).square().mean().backward()
        network.zero_grad()

    result = memory.measure_cost(work)
    for images in (1 + 1, 5, 64):
        tracer = memory.AllocationTracer()
        with tracer:
            work(images)
        assert result.peak(images) == max(tracer.bytes_in_use)
    assert result.peak(64) > 64 * 8 * 14 * 14 * 4 * 2  # at least what two layers keep


def test_the_peak_moves_from_weights_to_images() -> None:
    cost = memory.LinearCost(torch.tensor([100.0, 10.0]), torch.tensor([1.0, 5.0]))

    assert [cost.peak(images) for images in (2, 22, 23, 100)] == [102, 122, 125, 510]


def test_F18_a_refusal_names_need_room_and_a_batch_size() -> None:
    need = memory.MemoryNeed(optimizer=GIGABYTE, step=line(0, GIGABYTE / 10), evaluation=0)
    with pytest.raises(errors.OutOfMemory) as raised:
        memory_check.MemoryEstimate(need, 4 * GIGABYTE).check(128)

    assert "batch_size 128 needs about 13.8 GB" in raised.value.detail
    assert "4.0 GB are free" in raised.value.detail
    assert raised.value.hint == "batch_size 8 should fit"
    assert need.at(8) < 4 * GIGABYTE < need.at(32)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_images_that_take_more_than_half_of_the_free_memory_are_streamed(device: str) -> None:
    stored = StoredRows.write_unnamed([np.zeros((120, 16, 16, 3), np.uint8)], 16, None)
    labeled = LabeledImages(stored.part(0, 100), torch.arange(100) % 4, tuple("abcd"))
    truth = Truth(None, stored.part(100, 120), torch.arange(20) % 4)

    def choose(free: int, of_test: Truth | None = truth, most: int | None = None) -> store_choice.StoreChoice:
        return store_choice.choose(labeled, of_test, torch.device(device), free, most)

    assert choose(2 * stored.nbytes)[:3] == (False, stored.nbytes, 2 * stored.nbytes)
    assert choose(2 * stored.nbytes - 2).streamed
    assert not choose(2 * stored.nbytes - 2, None).streamed
    assert choose(2 * stored.nbytes, most=stored.nbytes - 1).streamed
    sentence = choose(stored.nbytes).explain()
    assert "read while they are needed" in sentence


def test_images_in_the_hosts_memory_are_streamed_to_a_gpu_alone(labeled: LabeledImages) -> None:
    assert not store_choice.choose(labeled, None, torch.device("cpu"), 1).streamed
    assert store_choice.choose(labeled, None, torch.device("cuda", 0), 1).streamed


def test_a_batch_needs_the_same_however_much_of_it_is_unlabelled() -> None:
    index = torch.arange(3)

    def show(images: int) -> Batch:
        labelled, unlabelled = torch.ones(images, 1000), torch.ones(images, 1000)
        return Batch((labelled,), index, index, fail, unlabelled=Unlabelled((unlabelled,), index, fail))

    def take(batch: Batch, _: Optimizers) -> None:
        assert batch.unlabelled is not None
        images_seen = torch.cat([batch.images, *batch.unlabelled.views])
        batch.record_logits(images_seen)
        batch.unlabelled.record_logits(images_seen)

    def fail(_: object) -> None:
        pytest.fail("the estimate records no logits")

    optimizers = Optimizers((), lambda progress: 1.0)
    others: dict[str, Any] = {"eval_rows": 0, "optimizers": optimizers, "device": torch.device("cpu")}
    rooms = [
        memory_check.estimate(torch.nn.Identity(), show, take, fail, rows=rows, **others)
        for rows in ((16, 16), (30, 2))
    ]

    assert [room.need.at(32) for room in rooms] == [2 * 32 * 1000 * 4] * 2


def test_F18_what_could_fit_is_tried() -> None:
    """A prediction a little above what is free is no reason to refuse."""
    memory_check.MemoryEstimate(memory.MemoryNeed(0, line(0, 1e9), 0), 9 * GIGABYTE).check(11)


def test_F18_nothing_is_offered_where_nothing_fits() -> None:
    room = memory_check.MemoryEstimate(memory.MemoryNeed(10 * GIGABYTE, line(0, 1.0), 0), GIGABYTE)
    with pytest.raises(errors.OutOfMemory, match="smaller network"):
        room.check(64)


def test_F18_a_step_that_ran_out_of_memory_is_answered_from_the_same_figures() -> None:
    """Though there seemed to be room: what did not fit is the new limit."""
    room = memory_check.MemoryEstimate(memory.MemoryNeed(0, line(0, 1e6), 0), 1000 * GIGABYTE)

    assert room.fitting(100) == 56
    assert room.fitting(2) is None


def test_F18_a_training_that_cannot_fit_never_begins(spec: Specs) -> None:
    images = torch.zeros(1, 64, 64, 3, dtype=torch.uint8).expand(8192, -1, -1, -1)  # one image's bytes, 8192 rows
    labeled = LabeledImages(images, torch.arange(8192) % 4, tuple("abcd"))
    copies = 1 if memory.free_bytes(torch.device("cpu")) < 100 * GIGABYTE else 2
    settings = spec(
        network="resnet18",
        image_size=64,
        batch_size=8192,
        params={"networks": copies},
        augmentation="none",
        validation_fraction=0.0,
    )
    training = Trainer.build(settings, labeled)
    before = {name: value.clone() for name, value in training.method.state_dict().items()}
    with pytest.raises(errors.OutOfMemory) as raised:
        next(iter(training))

    assert training.step == 0
    assert same(before, dict(training.method.state_dict())) == []
    assert raised.value.code == "out_of_memory"
    fitting = raised.value.fitting_batch_size
    assert fitting is not None
    assert f"batch_size {fitting} should fit" in str(raised.value)


@pytest.mark.parametrize("method", ["ce", "denll", "everything"])
def test_an_estimate_changes_no_state(method: str, spec: Specs, labeled: LabeledImages, truth: Truth) -> None:
    training = Trainer.build(spec(method=method, augmentation="crop_flip"), labeled, truth=truth)
    training.begin_epoch()
    before = training.state()
    training.check_memory()
    after = training.state()

    assert same(before.tensors, after.tensors) == []
    assert before.facts == after.facts
    assert all(p.grad is None for p in training.method.parameters())


def test_a_buffer_that_is_replaced_during_an_estimate_is_restored() -> None:
    method = torch.nn.BatchNorm2d(2)
    running_mean_before = method.running_mean
    with memory_check.preserve_state(method):
        method(torch.rand(3, 2, 4, 4))
        method.running_mean = torch.ones(5)

    assert method.running_mean is running_mean_before
    assert torch.equal(running_mean_before, torch.zeros(2))


def test_an_estimate_takes_milliseconds(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(), labeled)
    training.check_memory()
    started = time.process_time()
    training.check_memory()

    assert time.process_time() - started < 0.1


def test_the_smallest_limit_around_a_process_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("1:cpu:/elsewhere\n0::/outer/inner\n", encoding="ascii")
    root, outer, inner = tmp_path / "fs", tmp_path / "fs/outer", tmp_path / "fs/outer/inner"
    inner.mkdir(parents=True)
    assert host_memory.cgroup_free_bytes(root, own) >= host_memory.UNLIMITED  # another kind of cgroups

    def limit(group: Path, most: str, used: int, cached: int) -> None:
        (group / "memory.max").write_text(f"{most}\n", encoding="ascii")
        (group / "memory.current").write_text(f"{used}\n", encoding="ascii")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\nactive_file 5\n", encoding="ascii")

    assert host_memory.cgroup_limit_bytes(root, own) >= host_memory.UNLIMITED
    limit(inner, "max", 500, 0)
    assert host_memory.cgroup_free_bytes(root, own) >= host_memory.UNLIMITED
    limit(outer, "1000", 700, 100)
    assert host_memory.cgroup_free_bytes(root, own) == 1000 - 700 + 105
    assert host_memory.cgroup_limit_bytes(root, own) == 1000
    limit(inner, "800", 600, 0)
    assert host_memory.cgroup_free_bytes(root, own) == 205
    assert host_memory.cgroup_limit_bytes(root, own) == 800
    limit(inner, "800", 900, 0)
    assert host_memory.cgroup_free_bytes(root, own) == 0


def test_the_limit_of_a_process_counts() -> None:
    """In a process of its own, which has as much left as it has been allowed beyond what it uses."""
    script = """
import resource
from pathlib import Path
from ml.training import host_memory
status = Path("/proc/self/status")
used = next(int(row.split()[1]) * 1024 for row in status.read_text().splitlines() if row.startswith("VmData"))
print(host_memory.process_free_bytes(status) == host_memory.UNLIMITED)
resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20), resource.RLIM_INFINITY))
print(host_memory.process_free_bytes(status), host_memory.free_bytes())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    unlimited, left, free = done.stdout.split()

    assert unlimited == "True"
    assert 60 << 20 <= int(left) <= 64 << 20
    assert int(free) <= 64 << 20


def test_the_smallest_quota_of_cpus_counts_in_whole_ones(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n", encoding="ascii")
    root, inner = tmp_path / "fs", tmp_path / "fs/outer/inner"
    inner.mkdir(parents=True)
    allowed = len(os.sched_getaffinity(0))
    assert host_cpus.count(root, own) == allowed  # another kind of cgroups

    def count(quota: str) -> int:
        (inner / "cpu.max").write_text(f"{quota} 100000\n", encoding="ascii")
        return host_cpus.count(root, own)

    assert [count("max"), count("99900000"), count("199999"), count("50000")] == [allowed, allowed, 1, 1]
    first = min(os.sched_getaffinity(0))
    script = "from ml.training import host_cpus; print(host_cpus.count())"
    pinned = subprocess.run(
        ["taskset", "-c", str(first), sys.executable, "-c", script], capture_output=True, check=True
    )
    assert int(pinned.stdout) == 1


def test_the_machine_says_what_is_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    3 kB\n", encoding="ascii")

    assert host_memory.available_bytes(tmp_path / "meminfo") == 3 * 1024
    assert host_memory.installed_bytes(tmp_path / "meminfo") == 9 * 1024
    assert host_memory.free_bytes() <= host_memory.total_bytes() < host_memory.UNLIMITED
    assert host_memory.available_bytes(tmp_path / "nothing") == host_memory.UNLIMITED
    assert 0 < memory.free_bytes(torch.device("cpu")) < host_memory.UNLIMITED


GROWTH = """
import importlib, json, os, sys
import torch
from ml.data.dataset import LabeledImages
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def measure(spec):
    torch.set_num_threads(1)
    count, side = 2 * spec.batch_size, spec.image_size
    images = torch.zeros(count, side, side, 3, dtype=torch.uint8)
    data = LabeledImages(images, torch.arange(count) % 4, tuple("abcd"))
    training = Trainer.build(spec, data, device="cpu", threads=1)
    training.check_memory()
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # forget the highest so far
    steps = iter(training)
    next(steps), next(steps)
    return {"predicted": training.memory.need.at(spec.batch_size), "grown": status("VmHWM") - before}

importlib.import_module("torch._dynamo")  # optimizers ask for it
for spec in map(TrainingSpec.model_validate_json, sys.argv[1:]):
    if (pid := os.fork()) == 0:
        print(json.dumps(measure(spec)), flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
os._exit(0)
"""
TRAININGS = [("small", "ce", 1024), ("small", "denll", 512), ("resnet18", "ce", 48)]  # network, method, batch size


@pytest.fixture(scope="module")
def growth() -> list[dict[str, int]]:
    """Predicted and measured bytes of each training, each in a process forked from one that only imported."""
    specs = [
        TrainingSpec(
            network=network,
            method=method,
            batch_size=batch_size,
            image_size=32 if network == "resnet18" else 2 * SIDE,
            epochs=1,
            learning_rate=0.05,
            augmentation="flip",
            precision="f32",
            validation_fraction=0.0,
        )
        for network, method, batch_size in TRAININGS
    ]
    command = [sys.executable, "-c", GROWTH, *(spec.model_dump_json() for spec in specs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=600, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(TRAININGS)), ids=lambda number: "-".join(map(str, TRAININGS[number])))
def test_a_process_grows_about_as_predicted(number: int, growth: list[dict[str, int]]) -> None:
    """Never much less, or a training that fits would be refused; never so much more that what is offered fails."""
    result = growth[number]

    assert result["predicted"] / memory.REFUSE_ABOVE < result["grown"] < result["predicted"] / memory.SUGGEST_BELOW, (
        result
    )
