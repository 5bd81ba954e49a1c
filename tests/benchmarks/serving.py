"""S1, S2, S4, S5: our service beside LitServe, BentoML and a plain FastAPI endpoint, under one load generator.

Conditions: all on this machine and over loopback, closed loop, keep-alive, 32 px JPEGs of about a kilobyte, f32 unless
the line says bf16, in which ours computes by itself where the CPU has it. Ours is the real API process and the real
inference process with a published model. The peers run the same weights in eager torch in f32, decode with the same
decoder, and batch up to 64; each server has all cores. Servers take turns within a round and stand still meanwhile; a
figure is the median over the rounds of the ratio within each. CPU is that of the whole process tree. The limit is a
plain loop over decoder and model in the same arithmetic, at its best batch size. `layer` or `network` as an argument
runs that half alone; `-v` shows what the servers say.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from ml.data import decoding
from ml.serving.predictor import Prediction, Predictor
from tests.benchmarks._serving import servers
from tests.benchmarks._serving.model import CLASSES, FREE
from tests.benchmarks._serving.servers import ExpectedAnswer, Outcome, Server
from tests.benchmarks._sizes import SMALLEST, size

PEERS = ("naive", "litserve_peer", "bentoml_peer")
BATCHING = PEERS[1:]
EXACT, HALF = "ours", "ours bf16"
INFERENCE = {EXACT: "tests.benchmarks._serving.exact", HALF: "worker.inference"}  # modules of our inference processes
PRECISIONS = {EXACT: "f32", HALF: "bf16"}
PEER_TARGETS = {EXACT: 1.25, HALF: 2.1}  # of images a second over the best peer's
ROUNDS = size(3, 1)
NETWORK = size("resnet18", "small")
BATCHES = (8, 16, 32, 64)
THREADS = os.cpu_count() or 1


def line(id: str, what: str, measured: float | None, target: str, met: bool | None, **details: object) -> None:
    rounded = None if measured is None else round(measured, 3)
    print(json.dumps({"id": id, "benchmark": what, "measured": rounded, "target": target, "met": met} | details))
    sys.stdout.flush()


@contextlib.contextmanager
def running(scratch: Path, model: Path | str, inference: Mapping[str, str]) -> Iterator[dict[str, Server]]:
    """Ours, by name with the module of its inference process, and every peer that starts here."""
    with contextlib.ExitStack() as stack:
        started = {
            name: stack.enter_context(servers.ours(scratch, model, THREADS, module))
            for name, module in inference.items()
        }
        if servers.PEERS.exists() and not SMALLEST:
            started |= {name: stack.enter_context(servers.peer(name, model, THREADS)) for name in PEERS}
        servers.await_all(started.values())
        yield started


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def expected_answers(server: Server, kind: str, labels: Sequence[str]) -> list[ExpectedAnswer]:
    pictures = servers.pictures(len(labels))
    made = [servers.request(kind, server.paths[kind], picture) for picture in pictures]
    return [(data, 200, label) for data, label in zip(made, labels, strict=True)]


def layer(scratch: Path) -> None:
    """S1: the serving layer alone."""
    labels = [CLASSES[0]] * 64
    rounds: list[dict[str, Outcome]] = []
    with running(scratch, FREE, {"ours": "tests.benchmarks._serving.free"}) as started:
        for _ in range(ROUNDS + 1):
            rounds.append({})
            for name, server in started.items():
                for kind in server.paths:
                    (outcome,) = servers.drive(server, expected_answers(server, kind, labels), (32, size(1200, 64)))
                    rounds[-1][f"{name} {kind}"] = outcome
    del rounds[0]  # connections, caches, first calls
    cpu = {name: round(middle([r[name].cpu_ms for r in rounds]), 3) for name in rounds[0]}
    details = {"cpu_ms": cpu, "problems": [r[name].problems for r in rounds for name in r if r[name].problems]}
    if len(started) == 1:
        line("S1", "CPU of the serving layer", None, "<= 0.30", None, why="no peers: run `make bench`", **details)
        return
    for what, mine, theirs, most in (
        ("multipart over LitServe or BentoML", "ours multipart", [f"{name} multipart" for name in BATCHING], 0.30),
        ("raw over LitServe or BentoML", "ours raw", [f"{name} multipart" for name in BATCHING], 0.15),
        ("multipart over plain FastAPI", "ours multipart", ["naive multipart"], 0.60),
    ):
        ratio = middle([r[mine].cpu_ms / min(r[name].cpu_ms for name in theirs) for r in rounds])
        line("S1", f"CPU of the layer, {what}", ratio, f"<= {most:.2f}", ratio <= most, **details)
        details = {}


class Limit:
    """The same work in a plain loop."""

    def __init__(self, model: Path, precision: str) -> None:
        torch.set_num_threads(THREADS)
        self.predictor = Predictor.load(model, device="cpu", precision=precision)
        self.pictures = servers.pictures(64)
        self.labels = [CLASSES[int(p.probabilities.argmax())] for p in self.answers(self.pictures)]
        self.best_batch = max(BATCHES, key=lambda size: self.per_second(size, 64))

    def answers(self, pictures: Sequence[bytes]) -> list[Prediction]:
        return self.predictor.predict_squares([decoding.decode(picture) for picture in pictures])

    def per_second(self, batch: int, count: int) -> float:
        started = time.perf_counter()
        for first in range(0, count, batch):
            self.answers([self.pictures[(first + n) % 64] for n in range(batch)])
        return count / (time.perf_counter() - started)

    def one_ms(self) -> float:
        times = []
        for picture in self.pictures[:12]:
            started = time.perf_counter()
            self.answers([picture])
            times.append(1000 * (time.perf_counter() - started))
        return middle(times)


class Round(NamedTuple):
    """What one round saw, by server."""

    limit: dict[str, float]  # images a second, of ours
    one_ms: dict[str, float]  # of ours
    few: dict[str, Outcome]  # 8 clients
    many: dict[str, Outcome]  # 64 clients
    alone: dict[str, Outcome]
    after: dict[str, Outcome]  # one client, right after 64


def multipart(name: str, server: Server, limits: Mapping[str, Limit]) -> list[ExpectedAnswer]:
    """Requests, with the labels that a loop in the server's arithmetic gives; that of peers is f32."""
    return expected_answers(server, "multipart", limits.get(name, limits[EXACT]).labels)


def one_round(limits: Mapping[str, Limit], started: dict[str, Server]) -> Round:
    measured_round = Round({}, {}, {}, {}, {}, {})
    for name, limit in limits.items():
        measured_round.limit[name] = limit.per_second(limit.best_batch, 128)
        measured_round.one_ms[name] = limit.one_ms()
    for name, server in started.items():
        requests = multipart(name, server, limits)
        measured_round.alone[name], measured_round.few[name], measured_round.many[name], measured_round.after[name] = (
            servers.drive(server, requests, (1, 24), (8, size(192, 64)), (64, size(512, 128)), (1, 24))
        )
    return measured_round


def network(scratch: Path) -> None:
    """S2, S4 and the first half of S5."""
    model = scratch / "model"
    servers.publish(model, NETWORK)
    limits = {EXACT: Limit(model, "f32"), HALF: Limit(model, "auto")}
    if not limits[HALF].predictor.half:
        del limits[HALF]
    with running(scratch, model, {name: INFERENCE[name] for name in limits}) as started:
        for name, server in started.items():  # connections, caches, first calls
            servers.drive(server, multipart(name, server, limits), (32, 64))
        rounds = [one_round(limits, started) for _ in range(ROUNDS)]
        peers = [name for name in started if name not in limits]
        spoiled(started[EXACT], limits[EXACT].labels)
    for ours in limits:
        throughput(rounds, ours, peers)
        waiting(rounds, ours, peers)
    if HALF not in limits:
        why = "this CPU has no bf16 instructions, or bf16 predicts other classes"
        line("S2", "ResNet-18 bf16, images/s over the best peer in f32", None, ">= 2.10", None, why=why)
    outcomes = [outcome for r in rounds for name in limits for outcome in (r.few[name], r.many[name])]
    problems = [outcome.problems for outcome in outcomes if outcome.problems]
    failed = sum(sum(counts.values()) for counts in problems) + sum(outcome.otherwise for outcome in outcomes)
    line("S5", "failed or wrong answers at 64 clients", failed, "0", failed == 0, problems=problems)


def throughput(rounds: list[Round], ours: str, peers: list[str]) -> None:
    target = PEER_TARGETS[ours]
    for clients, of in ((8, attrgetter("few")), (64, attrgetter("many"))):
        share = middle([of(r)[ours].per_second / r.limit[ours] for r in rounds])
        speeds = {name: round(middle([of(r)[name].per_second for r in rounds]), 1) for name in (ours, *peers)}
        cpu = {name: round(middle([of(r)[name].cpu_ms for r in rounds]), 2) for name in (ours, *peers)}
        limit = round(middle([r.limit[ours] for r in rounds]), 1)
        details = {"images_per_second": speeds | {"limit": limit}, "cpu_ms": cpu}
        what = f"ResNet-18 {PRECISIONS[ours]}, {clients} clients, images/s"
        line("S2", f"{what}, share of the limit", share, ">= 0.90", share >= 0.90, **details)
        if peers:
            best = middle([of(r)[ours].per_second / max(of(r)[name].per_second for name in peers) for r in rounds])
            saved = middle([min(of(r)[name].cpu_ms for name in peers) / of(r)[ours].cpu_ms for r in rounds])
            line(
                "S2", f"{what} over the best peer in f32", best, f">= {target:.2f}", best >= target,
                cpu_of_the_best_peer_over_ours=round(saved, 2),  # the steadier figure where others use the cores
            )  # fmt: skip


def waiting(rounds: list[Round], ours: str, peers: list[str]) -> None:
    forward = middle([r.one_ms[ours] for r in rounds])
    for when, of in (("one client", attrgetter("alone")), ("one client after 64", attrgetter("after"))):
        p50 = {name: round(middle([of(r)[name].p50_ms for r in rounds]), 2) for name in (ours, *peers)}
        p99 = {name: round(middle([of(r)[name].p99_ms for r in rounds]), 2) for name in (ours, *peers)}
        over = middle([of(r)[ours].p50_ms - (1.2 * r.one_ms[ours] + 1.5) for r in rounds])
        details = {"p50_ms": p50, "p99_ms": p99, "forward_ms": round(forward, 2)}
        what = f"p50 of {when}, {PRECISIONS[ours]}"
        line("S4", f"{what}, beyond 1.2 forwards + 1.5 ms", over, "<= 0", over <= 0, **details)
        if peers:
            ratio = middle([of(r)[ours].p50_ms / min(of(r)[name].p50_ms for name in peers) for r in rounds])
            line("S4", f"{what}, over the quickest peer", ratio, "<= 0.70", ratio <= 0.70)


def spoiled(server: Server, labels: Sequence[str]) -> None:
    """S5: one picture in sixteen is cut off; it alone is refused."""
    good = expected_answers(server, "raw", labels)
    cut = servers.pictures(1)[0][:300]
    requests = [
        (servers.request("raw", server.paths["raw"], cut), 422, "") if n % 16 == 5 else answer
        for n, answer in enumerate(good)
    ]
    (outcome,) = servers.drive(server, requests, (64, 256))
    wrong = sum(outcome.problems.values()) + outcome.otherwise
    what = "answers that a bad picture in sixteen changed"
    line("S5", what, wrong, "0", wrong == 0, problems=outcome.problems)


def main() -> None:
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(1)
    )  # as SIGINT does: the servers must not outlive us, however we end
    halves = {"layer": layer, "network": network}
    chosen = [name for name in halves if name in sys.argv] or halves
    with TemporaryDirectory() as folder:
        for name in chosen:
            halves[name](Path(folder))


if __name__ == "__main__":
    main()
