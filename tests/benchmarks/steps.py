"""T3, T5, T6: what a step gains from bf16, what a second network costs, and what looking at the whole set costs.

Conditions: CPU, torch with one thread, 32 px. Ratios of CPU time of this process, rounds interleaved. T7 is in `gpu`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch

from ml import networks
from ml.data.dataset import LabeledImages, Truth
from ml.method import Optimizers, take_gradient_step
from ml.methods import dividemix
from ml.training import devices, sampler
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Trainer
from tests.benchmarks._sizes import size

SIDE, CLASSES = 32, 10
BF16_TARGETS = {"resnet18": 2.0, "small": 2.2}
PAIR_TARGET, SCORING_TARGET = 2.02, 1.05


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps(bf16("resnet18", size(128, 2), size(3, 1))), flush=True)
    print(json.dumps(bf16("small", size(128, 4), size(5, 1))), flush=True)
    print(json.dumps(pair("small", size(640, 16), size(5, 1))), flush=True)
    print(json.dumps(pair("resnet18", size(32, 4), size(2, 1))), flush=True)
    print(json.dumps(scoring("small", size(1024, 64), size(7, 1))), flush=True)


def labeled(count: int) -> LabeledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    return LabeledImages(images, torch.arange(count) % CLASSES, tuple("abcdefghij"))


def medians(rounds: int, *works: Callable[[], object]) -> list[float]:
    """CPU seconds of each work, one after the other in every round; the first round is not counted."""
    times: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, figures in zip(works, times, strict=True):
            started = time.process_time()
            work()
            if number:
                figures.append(time.process_time() - started)
    return [statistics.median(figures) for figures in times]


def step_of(network: str, batch: int, *, channels_last: bool, half: bool) -> Callable[[], None]:
    """Forward, cross-entropy, backward, SGD on one batch that never changes."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = networks.build(network, CLASSES, SIDE).to(memory_format=layout)
        images = torch.randn(batch, 3, SIDE, SIDE).contiguous(memory_format=layout)
    labels = torch.arange(batch) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        take_gradient_step(loss, Optimizers((optimizer,), lambda _: 1.0))

    return step


def bf16(network: str, batch: int, rounds: int) -> dict[str, object]:
    """Without instructions for bf16 it is emulated, and measuring that says nothing of a CPU that has them."""
    native, target = devices.has_fast_bf16(torch.device("cpu")), BF16_TARGETS[network]
    plain = step_of(network, batch, channels_last=False, half=False)
    last = step_of(network, batch, channels_last=True, half=False)
    line: dict[str, object] = {
        "id": "T3",
        "benchmark": f"step of {network}: f32 NCHW over bf16, one core",
        "target": f">= {target}",
    }
    if native:
        slow, exact, fast = medians(rounds, plain, last, step_of(network, batch, channels_last=True, half=True))
        ratio = slow / fast
        line |= {"measured": round(ratio, 2), "met": ratio >= target}
    else:
        slow, exact = medians(rounds, plain, last)
        line |= {"measured": None, "met": None, "why": "this CPU has no instructions for bf16"}
    return line | {"f32_nchw_over_f32_channels_last": round(slow / exact, 2), "batch_size": batch}


def pair(network: str, count: int, rounds: int) -> dict[str, object]:
    """Whole epochs of cross-entropy with one network and with two."""
    batch = min(128, count // 2)
    ratio_of = []
    for members in (1, 2):
        spec = TrainingSpec(
            method="ce", params={"networks": members}, network=network, epochs=rounds + 1, batch_size=batch,
            precision="f32", validation_fraction=0.0,
        )  # fmt: skip
        training = Trainer.build(spec, labeled(count), truth=Truth(None, None, None), device="cpu", threads=1)
        ratio_of.append(epoch_of(training))
    one, two = medians(rounds, *ratio_of)
    return {
        "id": "T5",
        "benchmark": f"epoch of two {network} over one",
        "measured": round(two / one, 3),
        "target": f"<= {PAIR_TARGET}",
        "met": two / one <= PAIR_TARGET,
        "one_cpu_s": round(one, 2),
    }


def epoch_of(training: Trainer) -> Callable[[], None]:
    events = iter(training)

    def epoch() -> None:
        while not isinstance(next(events), EpochReport):
            pass

    return epoch


def scoring(network: str, count: int, rounds: int) -> dict[str, object]:
    """DivideMix's division of the whole set and the order from it, over both networks' forward passes alone."""
    spec = TrainingSpec(
        method="dividemix", network=network, epochs=4, batch_size=64, precision="f32", validation_fraction=0.0
    )
    training = Trainer.build(spec, labeled(count), device="cpu", threads=1)
    method = training.method
    assert isinstance(method, dividemix.Method)
    division = training.phases[-1]
    assert division.passes is not None
    passes, order = division.passes, torch.Generator().manual_seed(0)
    batch = training.score(lambda inputs: inputs).contiguous(memory_format=torch.channels_last)

    def divided() -> None:
        division.begin_epoch(training)
        sampler.EpochSampler.draw(passes(), spec.batch_size, order, training.device)

    def bare() -> None:
        method.eval()
        with torch.no_grad():
            for one in method.networks:
                one(batch)

    whole, forward = medians(rounds, divided, bare)
    return {
        "id": "T6",
        "benchmark": f"score, split and draw {count} images over forward",
        "measured": round(whole / forward, 3),
        "target": f"<= {SCORING_TARGET}",
        "met": whole / forward <= SCORING_TARGET,
        "networks": f"2 x {network}",
        "forward_cpu_s": round(forward, 2),
        "besides_cpu_ms_per_image": round(1e3 * (whole - forward) / count, 4),
    }


if __name__ == "__main__":
    main()
