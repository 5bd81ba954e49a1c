"""One training on several devices: every process does the same, but each sends only its share of a batch through the
networks.

Between a network's `body` and the end of its `last_stage` a rank sees its own rows; features are gathered, and whatever
follows - losses on whole batches, memories of samples, the choice of samples - is done by all ranks alike, on the same
numbers. So methods, checkpoints and names of weights do not change. It knows no method, no loss, and nobody who starts
processes.

Shapes: `B` rows of a batch, `b` of them this rank's (maybe none), `C` channels.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore  # torch.distributed has it as well, but not for type checkers
from torch.nn import functional as F

from ml import errors
from ml.phase import Network

PATIENCE = datetime.timedelta(days=1)  # until the first rank is ready: who watches the processes ends a vain wait
LARGEST_DRIFT = 1e-3  # between ranks, as a share of a tensor's largest value: rounding is a thousand times smaller
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # all ranks live on one machine


class PeerLost(RuntimeError):
    """Another rank has ended, or does not answer: of this attempt, not of the training."""


class Group:
    """The processes of one training, seen by one of them. Rank 0 alone talks to the world outside."""

    def __init__(self, rank: int, size: int, device: torch.device, store: FileStore) -> None:
        """Use `join`."""
        self.rank, self.size, self.device = rank, size, device
        self.active = True  # after `leave`, networks compute whole batches again
        self._store = store
        self._said = 0
        self._rows = 0  # B of the batch that is in a network
        self._within = contextlib.ExitStack()  # what a forward pass has changed and gives back

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copied network belongs to the same group

    @classmethod
    def join(cls, meeting: Path, rank: int, size: int, device: torch.device, *, silence_s: float) -> Self:
        """Meet the other ranks, through a file that does not exist yet; the first may take its time to come.

        PeerLost when a rank stays silent for `silence_s`, then and in every exchange.
        """
        for name, value in LOOPBACK.items():
            os.environ.setdefault(name, value)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        silence = datetime.timedelta(seconds=silence_s)
        with _among_peers():
            store = FileStore(str(meeting), size)
            if rank == 0:
                store.set("begun", "")
            else:
                store.wait(["begun"], PATIENCE)
            store.set_timeout(silence)
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=silence)
        return cls(rank, size, device, store)

    def leave(self) -> None:
        """Wait for the others, then part from them."""
        with _among_peers():
            dist.barrier()
        self.active = False
        dist.destroy_process_group()

    def said_by_first(self, value: Any = None) -> Any:
        """What rank 0 says here, a JSON value; the others' is not looked at."""
        self._said += 1
        with _among_peers():
            if self.rank == 0:
                self._store.set(f"said {self._said}", json.dumps(value))
                return value
            return json.loads(self._store.get(f"said {self._said}"))

    def least(self, own: int) -> int:
        """The smallest of what the ranks say."""
        said = torch.tensor(own, dtype=torch.int64, device=self.device)
        with _among_peers():
            dist.all_reduce(said, dist.ReduceOp.MIN)
        return int(said)

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Take over rank 0's values."""
        for own in tensors:
            own.detach().copy_(self._of_first(own))

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Take over rank 0's values; RanksApart on every rank if one of them differed by more than rounding.

        On a CPU nothing ever differs. GPUs may choose their algorithms one by one, and round differently.
        """
        drift = torch.zeros((), device=self.device)
        for own in tensors:
            common = self._of_first(own)
            if own.is_floating_point() and own.numel():
                apart = (own.detach() - common).abs().max() / common.abs().max().clamp_min(1e-12)
                drift = torch.maximum(drift, apart.float().nan_to_num(0.0))  # NaN is found by those who look at losses
            own.detach().copy_(common)
        with _among_peers():
            dist.all_reduce(drift, dist.ReduceOp.MAX)
        if float(drift) > LARGEST_DRIFT:
            raise errors.RanksApart(float(drift))

    def _of_first(self, own: Tensor) -> Tensor:
        common = own.detach().clone(memory_format=torch.contiguous_format)
        with _among_peers():
            dist.broadcast(common, 0)
        return common

    def own(self, rows: int) -> slice:
        """This rank's share of that many rows: consecutive, and alike to one row; maybe empty."""
        return slice(*(rows * number // self.size for number in (self.rank, self.rank + 1)))

    def idle(self, rows: int) -> bool:
        """Whether that share is empty. The rank then goes along with a row that counts nowhere: not every operator
        takes none, and all ranks must meet in every exchange."""
        own = self.own(rows)
        return bool(own.start == own.stop)

    def is_idle(self) -> bool:
        """Whether nothing of the batch that is in a network is this rank's."""
        return self.idle(self._rows)

    def gathered(self, own: Tensor, rows: int) -> Tensor:
        """The shares of all ranks in their order: (b, ...) -> (B, ...)."""
        counts = [rows * (number + 1) // self.size - rows * number // self.size for number in range(self.size)]
        padded = own.new_zeros((max(counts), *own.shape[1:]))
        padded[: counts[self.rank]] = own[: counts[self.rank]]
        parts = self.all_of(padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def all_of(self, own: Tensor) -> Tensor:
        """Every rank's tensor of the same shape: (...) -> (size, ...). Bytes are sent, whatever they mean."""
        found = own.new_empty((self.size, *own.shape))
        with _among_peers():
            dist.all_gather_into_tensor(found.view(-1).view(torch.uint8), own.contiguous().view(-1).view(torch.uint8))
        return found

    def summed(self, own: Tensor) -> Tensor:
        """The sum over ranks, the same bits on each."""
        with _among_peers():
            dist.all_reduce(own)
        return own

    def enter(self, module: nn.Module, images: Tensor) -> Tensor:
        """A batch comes to a body: go on with our share of it (B, ...) -> (b, ...)."""
        self._within.close()
        self._rows = len(images)
        if module.training:
            self._within.enter_context(self._own_draws())
        shard: Tensor = _Share.apply(images, self)
        return shard

    def exit(self, features: Tensor) -> Tensor:
        """Our features leave a last stage: go on with everybody's (b, ...) -> (B, ...)."""
        self._within.close()
        gathered: Tensor = _Gather.apply(features, self._rows, self)
        return gathered

    @contextlib.contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Dropout draws for our rows alone: from a seed that all ranks draw alike, and that each makes its own."""
        seed = int(torch.randint(2**62, ())) + self.rank
        gpus = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):
            torch.default_generator.manual_seed(seed)
            if gpus:
                torch.cuda.manual_seed(seed)
            yield


def shard(network: Network, group: Group) -> Network:
    """The same network, from now on computing this rank's rows while the group is together."""
    for part in (network.body, network.last_stage):
        for module in part.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = BatchNorm  # names of weights, copies and pretrained files stay as they are
                assert isinstance(module, BatchNorm)
                module.group = group
    _gradients_add_up(network.body, group)  # first, so that a share enters with its parameters at hand
    _gradients_add_up(network.last_stage, group)
    network.body.register_forward_pre_hook(
        lambda module, images: group.enter(module, *images) if group.active else None
    )
    network.last_stage.register_forward_hook(
        lambda module, given, features: group.exit(features) if group.active else None
    )
    return network


def _gradients_add_up(part: nn.Module, group: Group) -> None:
    """During a forward pass the part's parameters are views of themselves whose gradient is summed over ranks.

    At this place, and not on the parameters: a penalty on weights is the same on all ranks and must not be summed. And
    so copies of a network, and parameters that a method replaces, need no care.
    """
    lent: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter]] = []

    def lend(module: nn.Module, given: tuple[Any, ...]) -> None:
        if not (group.active and torch.is_grad_enabled()):
            return
        lent.extend(
            (member._parameters, name, parameter)
            for member in module.modules()
            for name, parameter in member._parameters.items()
            if parameter is not None and parameter.requires_grad
        )
        views = _Sum.apply(group, *(parameter for _, _, parameter in lent)) if lent else ()
        for (parameters, name, _), view in zip(lent, views, strict=True):
            parameters[name] = view

    def give_back(module: nn.Module, given: tuple[Any, ...], found: Any) -> None:
        for parameters, name, parameter in lent:
            parameters[name] = parameter
        lent.clear()

    part.register_forward_pre_hook(lend)
    part.register_forward_hook(give_back, always_call=True)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the rows of all ranks, as one process would do it with the whole batch."""

    group: Group

    def forward(self, input: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, C, H, W)."""
        if not (self.training and self.group.active):
            return super().forward(input)
        mean, variance, count = self._statistics(input.detach())
        if self.track_running_stats and self.num_batches_tracked is not None:
            assert self.running_mean is not None
            assert self.running_var is not None
            self.num_batches_tracked.add_(1)
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.mul_(1 - rate).add_(mean, alpha=rate)
            self.running_var.mul_(1 - rate).add_(variance * (count / (count - 1)), alpha=rate)
        weight = torch.ones_like(mean) if self.weight is None else self.weight
        bias = torch.zeros_like(mean) if self.bias is None else self.bias
        normal: Tensor = _Normalise.apply(input, weight, bias, mean, variance, count, self.eps, self.group)
        return normal

    def _statistics(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance (C,) and the count of values they are taken over, of all ranks (Chan et al. 1979)."""
        precise = input.to(torch.promote_types(input.dtype, torch.float32))
        own = precise.new_zeros(2 * self.num_features + 1)
        if not self.group.is_idle():
            values = input.numel() // self.num_features
            variance, mean = torch.var_mean(precise, dim=(0, 2, 3), correction=0)
            own = torch.cat([mean, variance * values, mean.new_full((1,), values)])
        means, squares, counts = torch.split(self.group.all_of(own), [self.num_features, self.num_features, 1], dim=1)
        count = counts.sum()
        mean = (means * counts).sum(dim=0) / count
        within = squares.sum(dim=0) + ((means - mean).square() * counts).sum(dim=0)
        return mean, within / count, count


class _Share(torch.autograd.Function):
    """Own rows forth; back, the gradients of everybody's rows, because what made the images is not divided."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, group: Group) -> Tensor:
        ctx.rows, ctx.group = len(images), group
        return images[:1] if group.idle(len(images)) else images[group.own(len(images))]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.gathered(grad, ctx.rows), None


class _Gather(torch.autograd.Function):
    """Everybody's rows forth; back, the gradient of the own: what follows is the same on all ranks."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, rows: int, group: Group) -> Tensor:
        ctx.rows, ctx.group = rows, group
        return group.gathered(features, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        own = torch.zeros_like(grad[:1]) if ctx.group.idle(ctx.rows) else grad[ctx.group.own(ctx.rows)]
        return own, None, None


class _Sum(torch.autograd.Function):
    """Parameters as they are; back, their gradients summed over ranks in one exchange."""

    @staticmethod
    def forward(ctx: Any, group: Group, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.layouts = group, [(parameter.shape, parameter.stride()) for parameter in parameters]
        ctx.set_materialize_grads(False)  # a parameter that had no part in the pass has no gradient
        return tuple(parameter.view_as(parameter) for parameter in parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        known = [(number, grad) for number, grad in enumerate(grads) if grad is not None]
        found: list[Tensor | None] = [None] * len(grads)
        if known:
            together = known[0][1].new_empty(sum(grad.numel() for _, grad in known))
            at = 0
            for number, grad in known:  # laid out like the parameter, so that nobody has to copy it once more
                shape, strides = ctx.layouts[number]
                found[number] = together.as_strided(shape, strides, at).copy_(grad)
                at += grad.numel()
            ctx.group.summed(together)
        return (None, *found)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, where mean and variance are those of all ranks' x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
        group: Group,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.group, ctx.idle = eps, group, group.is_idle()
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """As if mean and variance were constants, and then what x does to them."""
        x, weight, mean, variance, count = ctx.saved_tensors
        plain, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        of_all = ctx.group.summed(torch.stack([to_bias, to_weight]))  # sums over B, H, W of grad and of grad * x^
        deviation = (variance + ctx.eps).rsqrt()
        steep = weight * deviation.square() * of_all[1] / count
        level = weight * deviation * of_all[0] / count - steep * mean
        if not ctx.idle:
            plain = (plain - (x * steep[:, None, None] + level[:, None, None])).to(x.dtype)
        return plain, to_weight, to_bias, None, None, None, None, None


@contextlib.contextmanager
def _among_peers() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # each backend has its own complaints
        raise PeerLost(f"another process of this training has ended or does not answer: {error}") from error
