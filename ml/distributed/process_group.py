"""One training on several devices: every process does the same, but each sends only its share of a batch through the
networks.

Between a network's `body` and the end of its `last_stage` a rank sees its own rows; features are gathered, and whatever
follows - losses on whole batches, memories of samples, the choice of samples - is done by all ranks alike, on the same
numbers. So methods, checkpoints and names of weights do not change. Here is what ranks tell each other; how a network
computes its share is in `ml.distributed.sharding`. It knows no method, no loss, and nobody who starts processes.

Shapes: `B` rows of a batch, `b` of them this rank's (maybe none).
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

from ml import errors

PATIENCE = datetime.timedelta(days=1)  # until the first rank is ready: who watches the processes ends a vain wait
LARGEST_DRIFT = 1e-3  # between ranks, as a share of a tensor's largest value: rounding is a thousand times smaller
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # all ranks live on one machine


class RankFailure(RuntimeError):
    """Another rank has ended, or does not answer: of this attempt, not of the training."""


class ProcessGroup:
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
            raise errors.RankDivergence(float(drift))

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


class _Share(torch.autograd.Function):
    """Own rows forth; back, the gradients of everybody's rows, because what made the images is not divided."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, group: ProcessGroup) -> Tensor:
        ctx.rows, ctx.group = len(images), group
        return images[:1] if group.idle(len(images)) else images[group.own(len(images))]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.gathered(grad, ctx.rows), None


class _Gather(torch.autograd.Function):
    """Everybody's rows forth; back, the gradient of the own: what follows is the same on all ranks."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, rows: int, group: ProcessGroup) -> Tensor:
        ctx.rows, ctx.group = rows, group
        return group.gathered(features, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        own = torch.zeros_like(grad[:1]) if ctx.group.idle(ctx.rows) else grad[ctx.group.own(ctx.rows)]
        return own, None, None


@contextlib.contextmanager
def _among_peers() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # each backend has its own complaints
        raise RankFailure(f"another process of this training has ended or does not answer: {error}") from error
