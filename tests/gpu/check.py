"""First contact with a GPU, in parts that each show one thing: `python -m tests.gpu.check [PART ...]`.

Prints lines of JSON with the name of their part; the last line of a part has its status and seconds. Each part is a
process of its own, forked from one that has imported everything and made no CUDA call, as the service's children are:
one failure, or one broken CUDA context, spoils no other. The exit status counts the parts that failed.

`--device cpu --smallest` shows only that the parts run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ml import errors, methods
from ml.blocks import side_by_side
from ml.data.dataset import LabeledImages
from ml.distributed.launch import RankInfo, launch
from ml.distributed.process_group import ProcessGroup
from ml.serving import model_archive
from ml.serving.predictor import Predictor
from ml.training import checkpoint, devices
from ml.training.checkpoint_writer import CheckpointWriter
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Step, Trainer
from tests.ml.conftest import same

SIDE, CLASSES = 32, 10
LATE = {"pes", "pes_semi", "joint_optim", "t_revision", "m_correction"}  # methods whose later phases need more epochs


class Check:
    """The parts, on one device.

    Args:
        device: Such as `cuda` or `cpu`.
        smallest: Take sizes that only show that the parts run.
    """

    def __init__(self, device: str, *, smallest: bool) -> None:
        self.device, self.smallest = device, smallest
        self.is_gpu = device.startswith("cuda")
        self.network = "small" if smallest else "resnet18"
        self.part = ""  # the one that runs

    def parts(self) -> dict[str, tuple[Callable[[], None], int]]:
        """Each part by name, with its limit in seconds: together ten minutes."""
        return {
            "environment": (self.environment, 20),
            "warnings": (self.warnings, 30),
            "resume": (self.resume, 30),
            "checkpoints": (self.checkpoints, 40),
            "growth": (self.growth, 80),
            "predict": (self.predict, 30),
            "ranks": (self.ranks, 40),
            "out_of_memory": (self.out_of_memory, 30),
            "fp16": (self.fp16, 40),
            "methods": (self.methods, 130),
            "speed": (self.speed, 70),
            "two_networks": (self.two_networks, 60),
        }

    def say(self, **facts: object) -> None:
        print(json.dumps({"part": self.part} | facts, default=str), flush=True)

    def images(self, count: int) -> LabeledImages:
        """Random images whose brightest row says the class; few where everything is small."""
        count = min(count, 64) if self.smallest else count
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        pixels = torch.randint(0, 120, (count, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
        pixels[torch.arange(count), labels * 3] += 100
        return LabeledImages(pixels, labels, tuple("abcdefghij"))

    def trainer(self, count: int, *, device: str | None = None, cuda_graphs: bool = False, **changes: Any) -> Trainer:
        """A training on `count` images, in bf16 and without validation."""
        settings: dict[str, Any] = {
            "method": "ce", "network": self.network, "epochs": 3, "batch_size": 16 if self.smallest else 128,
            "augmentation": "crop_flip", "precision": "bf16", "validation_fraction": 0.0,
        }  # fmt: skip
        spec = TrainingSpec.model_validate(settings | changes)
        return Trainer.build(spec, self.images(count), device=device or self.device, cuda_graphs=cuda_graphs)

    def environment(self) -> None:
        """The driver, what torch was built for, and whether it can compute."""
        devices.check_usable(self.device)
        facts: dict[str, object] = {"torch": torch.__version__, "cuda": torch.version.cuda}
        if self.is_gpu:
            query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
            facts["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
            facts["capability"], facts["built_for"] = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
            facts["device_files"] = [path.name for path in Path("/dev").glob("nvidia*")]
        device = devices.resolve(self.device)
        self.say(device=device, fast_bf16=devices.has_fast_bf16(device), **facts)

    def warnings(self) -> None:
        """What torch warns of in a plain and then in a deterministic training: in tests, warnings are errors."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for deterministic in (False, True):
                list(self.trainer(700, epochs=1, deterministic=deterministic))
        self.say(warnings=sorted({str(one.message)[:160] for one in caught}))

    def resume(self) -> None:
        """Exactly on the same device, and with the weights kept on another kind."""
        for written, restored in ((self.device, self.device), (self.device, "cpu"), ("cpu", self.device)):
            whole = self.trainer(700, device=written, precision="f32", deterministic=True)
            states = [whole.state() for event in whole if isinstance(event, Step)]
            resumed = self.trainer(700, device=restored, precision="f32", deterministic=True)
            is_exact = resumed.restore(states[len(states) // 2])
            list(resumed)
            differ = same(whole.state().tensors, resumed.state().tensors) if is_exact else None
            self.say(written=written, restored=restored, is_exact=is_exact, differ=differ and differ[:4])
            assert not differ

    def checkpoints(self) -> None:
        """What of the loop's time goes to checkpoints that are due after epochs, and that the last one is valid."""
        trainer, written = self.trainer(20_000, epochs=2 if self.smallest else 12, cuda_graphs=True), []
        started, own_s = time.perf_counter(), 0.0
        with tempfile.TemporaryDirectory() as folder:
            writer = CheckpointWriter(trainer, Path(folder))
            for event in trainer:
                called = time.perf_counter()
                written.append(writer.collect())
                if isinstance(event, EpochReport) and writer.is_due(2.0 if self.is_gpu else 0.0):
                    writer.start()
                own_s += time.perf_counter() - called
            total_s = time.perf_counter() - started
            last = writer.collect(wait=True)
            writer.close()
            if last is not None:
                checkpoint.verify(last.path)
        copying_s = [round(one.copying_s, 4) for one in (*written, last) if one is not None]
        self.say(share=round(own_s / total_s, 4), copying_s=copying_s, **self.recorded(trainer))

    def growth(self) -> None:
        """The memory of 200 epochs: with the recordings of the first ones, and with all made anew in each epoch."""
        for anew in (False, True):
            trainer = self.trainer(1300, epochs=3 if self.smallest else 200, cuda_graphs=True)
            reserved: list[float] = []
            for event in trainer:
                if isinstance(event, EpochReport):
                    reserved.append(torch.cuda.memory_reserved() / 1e9 if self.is_gpu else 0.0)
                    if anew:  # a buffer that lies elsewhere makes them invalid
                        normalised = next(one for one in trainer.method.modules() if isinstance(one, nn.BatchNorm2d))
                        assert normalised.running_mean is not None
                        normalised.running_mean = normalised.running_mean.clone()
            settled = reserved[len(reserved) // 4]  # once both batch shapes have been recorded
            gb = {"reserved_gb": [round(number, 2) for number in (reserved[0], settled, reserved[-1])]}
            self.say(recorded_anew=anew, epochs=len(reserved), **gb, **self.recorded(trainer))
            assert reserved[-1] <= 1.05 * settled
            assert trainer.step_runner.replayed or not self.is_gpu

    def fp16(self) -> None:
        """fp16 with loss scaling, as a GPU without bf16 trains: recorded as eager, and how it learns beside bf16."""
        ends: dict[str, Trainer] = {}
        for name, recording in (("bf16", False), ("fp16", False), ("fp16 recorded", True)):
            precision = name.partition(" ")[0]
            settings: dict[str, Any] = {
                "precision": precision,
                "deterministic": True,
                "epochs": 2 if self.smallest else 6,
            }
            ends[name] = trainer = self.trainer(4096, cuda_graphs=recording, **settings)
            if trainer.scaler.is_enabled():  # so high that the first steps overflow
                trainer.begin_epoch()
                trainer.scaler.restore(trainer.scaler.tensors() | {"scale": torch.tensor(2.0**30)})
            list(trainer)
            self.say(
                case=name,
                loss=[round(report.train_loss, 4) for report in trainer.history],
                skipped_steps=sum(report.skipped_steps for report in trainer.history),
                scale=[float(scale) for scale in (trainer.scaler.tensors().get("scale"),) if scale is not None],
                **self.recorded(trainer),
            )
        differ = same(ends["fp16"].state().tensors, ends["fp16 recorded"].state().tensors)
        self.say(differ=differ[:4])
        assert not differ

    def predict(self) -> None:
        """Milliseconds of a prediction, by the number of images."""
        folder = Path(tempfile.mkdtemp()) / "model"
        trainer = self.trainer(1500, epochs=1, method="denll")
        list(trainer)
        model_archive.save(folder, trainer)
        started = time.perf_counter()
        predictor = Predictor.load(folder, self.device)
        loaded_s = time.perf_counter() - started
        squares = list(np.random.default_rng(0).integers(0, 255, (64, SIDE, SIDE, 3), dtype=np.uint8))

        def milliseconds(count: int) -> float:
            times = []
            for _ in range(3 if self.smallest else 60):
                called = time.perf_counter()
                predictor.predict_squares(squares[:count])
                times.append(1e3 * (time.perf_counter() - called))
            return round(statistics.median(times), 2)

        self.say(loaded_s=round(loaded_s, 2), half=predictor.half, p50_ms={n: milliseconds(n) for n in (1, 8, 64)})

    def ranks(self) -> None:
        """The launcher, the process group and sharded batch normalisation, with a rank on each GPU."""
        size = torch.cuda.device_count() if self.is_gpu else 1  # does not initialise CUDA
        self.say(ranks=size, epoch_s=launch(train_as_rank, size, self))

    def out_of_memory(self) -> None:
        """What a full GPU looks like to a training: refused, named, or an error without a type."""
        if not self.is_gpu:
            self.say(not_run="a CPU that is full ends other processes")
            return
        free = torch.cuda.mem_get_info()[0]
        filled = torch.empty(int(free - 6e8), dtype=torch.uint8, device=self.device)
        for batch_size, cuda_graphs in ((4096, False), (256, True), (64, False)):
            try:
                list(self.trainer(4096, epochs=1, batch_size=batch_size, cuda_graphs=cuda_graphs))
                outcome = "trained"
            except errors.Failure as failure:
                outcome = f"{failure.code}: {failure}"[:200]
            self.say(batch_size=batch_size, cuda_graphs=cuda_graphs, filled=len(filled), outcome=outcome)

    def methods(self) -> None:
        """Every method, eager against recorded, bit for bit; which of them cannot be recorded, and why."""
        for name in ("ce", "denll") if self.smallest else methods.names():
            started = time.perf_counter()
            settings: dict[str, Any] = {"method": name, "deterministic": True, "epochs": 6 if name in LATE else 2}
            eager, recorded = (self.trainer(700, cuda_graphs=recording, **settings) for recording in (False, True))
            list(eager), list(recorded)
            differ = same(eager.state().tensors, recorded.state().tensors)
            seconds = round(time.perf_counter() - started, 1)
            self.say(method=name, differ=differ[:4], seconds=seconds, **self.recorded(recorded))

    def speed(self) -> None:
        """Seconds of an epoch of 50,000 images, eager and recorded (T7)."""
        cases: list[dict[str, Any]] = [
            {"network": network, "batch_size": batch_size, "cuda_graphs": cuda_graphs}
            for network, batch_size, cuda_graphs in (
                ("resnet18", 128, False), ("resnet18", 128, True), ("resnet18", 512, True), ("resnet34", 128, True),
            )
        ]  # fmt: skip
        for case in [{"network": self.network}] if self.smallest else cases:
            self.epoch_seconds(**case)

    def two_networks(self) -> None:
        """An epoch of two networks over one of one (T5): recorded on two streams and on one, and DeNLL's two."""
        one_stream: Callable[..., Any] = lambda _: contextlib.nullcontext()  # noqa: E731
        for label, method, networks, streams in (
            ("one network", "ce", 1, 2),
            ("two on one stream", "ce", 2, 1),
            ("two on two streams", "ce", 2, 2),
            ("DeNLL", "denll", None, 2),
        ):
            with pytest.MonkeyPatch.context() as patch:
                if streams == 1:
                    patch.setattr(side_by_side, "second_stream", one_stream)
                params = {} if networks is None else {"networks": networks}
                self.say(case=label)
                epoch_s = self.epoch_seconds(method=method, params=params, cuda_graphs=True)
            if label == "one network":
                alone_s = epoch_s
            self.say(case=label, ratio=round(epoch_s / alone_s, 2))

    def epoch_seconds(self, **case: Any) -> float:
        """Train three epochs of 50,000 images, say how fast, and return the seconds of an epoch."""
        started, first_step_s, seconds = time.perf_counter(), None, []
        trainer = self.trainer(50_000, **case)
        for event in trainer:
            first_step_s = first_step_s or time.perf_counter() - started
            if isinstance(event, EpochReport):
                seconds.append(event.seconds)
        peak = round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.is_gpu else None
        epoch_s = statistics.median(seconds[1:])
        figures = {"first_step_s": round(first_step_s or 0.0, 2), "epoch_s": round(epoch_s, 3), "peak_gb": peak}
        self.say(**case, **figures, **self.recorded(trainer))
        return epoch_s

    @staticmethod
    def recorded(trainer: Trainer) -> dict[str, object]:
        """Which share of its steps were replayed, and why others were not."""
        runner = trainer.step_runner
        return {"recorded_steps": round(runner.recorded_share(), 3), "notices": runner.notices}


def train_as_rank(rank: RankInfo, check: Check) -> list[float] | None:
    """One process of a training on several devices; the seconds of its epochs, from the first."""
    device = f"cuda:{rank.rank}" if check.is_gpu else "cpu"
    group = ProcessGroup.join(rank.rendezvous, rank.rank, rank.size, devices.resolve(device), timeout_s=60.0)
    spec = TrainingSpec(method="ce", network=check.network, epochs=2, batch_size=32, validation_fraction=0.0)
    trainer = Trainer.build(spec, check.images(1500), device=device, group=group)
    if rank.rank:
        trainer.run_follower()
        return None
    group.broadcast_object(None)
    seconds = [event.seconds for event in trainer if isinstance(event, EpochReport)]
    group.leave()
    return seconds


def run(check: Check, name: str) -> int:
    """Run a part in a process of its own; its exit status, or minus the signal that ended it: 14 past its limit."""
    check.part = name
    part, limit_s = check.parts()[name]
    sys.stdout.flush()
    started = time.monotonic()
    if (pid := os.fork()) == 0:
        status = 1
        try:
            signal.alarm(limit_s)
            part()
            status = 0
        except BaseException:  # noqa: BLE001 - the outermost frame of a process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"part": name, "status": status, "seconds": seconds}), flush=True)
    return status


def main(arguments: Sequence[str]) -> int:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check")
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smallest", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # counting GPUs must not initialise CUDA here
    for module in ("torch._dynamo", "torch.distributed.launcher.api"):  # which a first step, and ranks, would import
        importlib.import_module(module)
    for name in methods.names():
        methods.load(name)
    check = Check(options.device, smallest=options.smallest)
    return sum(run(check, name) != 0 for name in options.parts or check.parts())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
