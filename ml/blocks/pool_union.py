"""What an epoch shows, where two halves of a pair have each chosen for themselves: both choices as one.

Knows pools of positions, no network, no label and no host. Shapes: `M` positions, `n` of them in a pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ml.method import Pass


def unite_passes(one: Sequence[Pass], two: Sequence[Pass]) -> Sequence[Pass]:
    """Pass by pass: a sample is labelled if either half trusts it, unlabelled if neither does."""
    return [unite(*pair) for pair in zip(one, two, strict=True)]


def unite(one: Pass, two: Pass) -> Pass:
    """As many labelled images in all as the one that shows more, so that repetitions stay what they are."""
    given = [positions(one_pass.pool) for one_pass in (one, two)]
    pool, longest = _joined(given), max(map(len, given))
    besides = [positions(one_pass.unlabelled) for one_pass in (one, two) if one_pass.unlabelled is not None]
    unlabelled = _without(_joined(besides), pool) if besides else None
    shown = repeat_to(pool, longest) if len(pool) < longest else pool
    return Pass(shown, unlabelled, min(one.share, two.share))


def positions(pool: Tensor) -> Tensor:
    """A mask bool (M,), or positions int64 (n,) as they are -> int64 (n,). Waits for the device."""
    return pool.nonzero()[:, 0] if pool.dtype == torch.bool else pool


def repeat_to(pool: Tensor, count: int) -> Tensor:
    """Positions int64 (n,) shown `count` times in all, each as often as every other, give or take one: (count,)."""
    return pool[torch.arange(count, device=pool.device) * len(pool) // count]


def _joined(pools: Sequence[Tensor]) -> Tensor:
    """Every position in any of them, once."""
    found: Tensor = torch.cat(list(pools)).unique()  # type: ignore[no-untyped-call]
    return found


def _without(pool: Tensor, other: Tensor) -> Tensor:
    return pool[~torch.isin(pool, other)]
