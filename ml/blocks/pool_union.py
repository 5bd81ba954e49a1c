"""The union of the pools that the two base methods of a pair have chosen for an epoch.

Shapes: `M` positions, `n` of them in a pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ml.method import Pass


def unite_passes(one: Sequence[Pass], two: Sequence[Pass]) -> Sequence[Pass]:
    """The unions of the passes `one` and `two` of both methods, pass by pass; they must have equally many."""
    return [unite(*pair) for pair in zip(one, two, strict=True)]


def unite(one: Pass, two: Pass) -> Pass:
    """One pass for `one` and `two`: a sample is labelled if either has it labelled, unlabelled if neither has.

    It has as many labelled images as the longer pass, so that repeated positions stay repeated.
    """
    pools = [pool_positions(one_pass.pool) for one_pass in (one, two)]
    pool, longest = _union(pools), max(map(len, pools))
    others = [pool_positions(one_pass.unlabelled) for one_pass in (one, two) if one_pass.unlabelled is not None]
    unlabelled = _difference(_union(others), pool) if others else None
    labelled = repeat_to(pool, longest) if len(pool) < longest else pool
    return Pass(labelled, unlabelled, min(one.share, two.share))


def pool_positions(pool: Tensor) -> Tensor:
    """Positions int64 (n,) of a pool that is a mask bool (M,) or such positions already. Waits for the device."""
    return pool.nonzero()[:, 0] if pool.dtype == torch.bool else pool


def repeat_to(pool: Tensor, count: int) -> Tensor:
    """The positions int64 (n,) of a pool repeated to `count` in all, int64 (count,), each equally often up to one."""
    return pool[torch.arange(count, device=pool.device) * len(pool) // count]


def _union(pools: Sequence[Tensor]) -> Tensor:
    """Every position in any of them, once."""
    union: Tensor = torch.cat(list(pools)).unique()  # type: ignore[no-untyped-call]
    return union


def _difference(pool: Tensor, other: Tensor) -> Tensor:
    return pool[~torch.isin(pool, other)]
