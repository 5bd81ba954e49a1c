"""Several processes train as one does: equal to it up to rounding, and to each other bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ml.training import memory
from tests.ml import ranks
from tests.ml.conftest import same

TOLERANCE = 1e-3  # of f32 after two epochs
RANDOM_OF_MODULES = "random/modules"  # each rank's share draws for itself; see `ml.distributed.process_group`


RankResults = dict[str, list[dict[str, Tensor]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of all ranks; one process starts them all, since importing torch takes seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.ml.ranks", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> RankResults:
    """The results of two ranks, by scenario."""
    names = [scenario.__name__ for scenario in ranks.SCENARIOS]
    return {name: [load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1)] for name in names}


def differing_names(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> list[str]:
    """Names of tensors that differ by more than a share of their largest value."""
    differing = set(one) ^ set(other)
    for name in set(one) & set(other):
        a, b = one[name].double(), other[name].double()
        known = ~torch.isnan(a)
        alike = a.shape == b.shape and torch.equal(known, ~torch.isnan(b))
        if not alike or _largest((a - b)[known]) > tolerance * max(_largest(a[known]), 1e-3):
            differing.add(name)
    return sorted(differing)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def without_module_rng(result: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in result.items() if RANDOM_OF_MODULES not in name}


def training(two: RankResults, name: str) -> dict[str, Tensor]:
    prefix = f"{name}: "
    return {key.removeprefix(prefix): t for key, t in two["trainings"][0].items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", sorted(set(ranks.CHANGES) - ranks.ALONE))
def test_two_processes_train_as_one_does(two: RankResults, name: str) -> None:
    """Weights, running statistics, momentum, order, the ranking of labels, and every reported loss."""
    assert (
        differing_names(without_module_rng(training(two, name)), without_module_rng(ranks.trained(name)), TOLERANCE)
        == []
    )


@pytest.mark.parametrize("name", ["trainings", "fp16_training", "resumed", "gradients", "bf16_gradients"])
def test_all_processes_hold_the_same_bits(two: RankResults, name: str) -> None:
    assert same(*two[name]) == []


def test_all_processes_skip_the_same_steps(two: RankResults) -> None:
    """Of which each sees gradients of its own rows, until they are summed; the scale fell and weights still moved."""
    scale = float(two["fp16_training"][0]["scaler/scale"])

    assert 1.0 < scale < 2.0**30


def test_resuming_on_two_processes_changes_no_bit(two: RankResults) -> None:
    assert same(training(two, "denll"), two["resumed"][0]) == []


def test_dropout_differs_between_ranks_and_leaves_equal_generators(two: RankResults) -> None:
    one, other = two["dropout_draws"]
    rows = one["first"].unbind()

    assert same(one, other) == []
    assert all(not torch.equal(a, b) for number, a in enumerate(rows) for b in rows[:number])
    assert not torch.equal(one["first"], one["second"])


def test_gradients_are_those_of_the_whole_batch(two: RankResults, tmp_path: Path) -> None:
    """Of a copied network, of images, of named parameters, and of a penalty that must not be summed over ranks."""
    alone = ranks.gradients(None, tmp_path)

    assert differing_names(alone, two["gradients"][1], 1e-12) == []


def test_bf16_gradients_are_no_further_from_f32(two: RankResults, tmp_path: Path) -> None:
    exact, alone = ranks.bf16_gradients(None, tmp_path, enabled=False), ranks.bf16_gradients(None, tmp_path)

    def distance(result: dict[str, Tensor]) -> float:
        return sum(float((result[name] - exact[name]).norm() / exact[name].norm()) for name in exact)

    assert set(two["bf16_gradients"][0]) == set(exact)
    assert distance(two["bf16_gradients"][0]) < 1.2 * distance(alone)


def test_ranks_that_drift_apart_are_noticed_by_all(two: RankResults) -> None:
    assert [list(result) for result in two["diverged_weights"]] == [["RankDivergence"]] * 2


def test_all_ranks_take_the_steps_of_the_first(two: RankResults) -> None:
    """Even if their own division differs: otherwise one of them would wait for an exchange that never comes."""
    assert same(*two["different_pools"]) == []


def test_all_ranks_have_the_same_memory_estimate(two: RankResults) -> None:
    """And refuse together; on a CPU all have a share of one memory."""
    assert same(*two["memory_estimates"]) == []
    assert int(two["memory_estimates"][0]["minimum"]) == 9
    assert 0 < int(two["memory_estimates"][0]["free"]) < 0.75 * memory.free_bytes(torch.device("cpu"))


def test_ranks_without_a_row_take_part(folder: Path) -> None:
    """Five ranks, and a last batch of two."""
    result = [load_file(folder / f"uneven-{rank}.safetensors") for rank in range(5)]

    assert differing_names(without_module_rng(result[4]), without_module_rng(ranks.trained("uneven")), TOLERANCE) == []
    assert all(same(result[0], other) == [] for other in result[1:])


def test_F02_a_rank_that_ends_ends_all(folder: Path) -> None:
    """Which of them the launcher names is chance: the others end because an exchange breaks."""
    assert (folder / "ended").read_text() in ("1 3", "0 1")
