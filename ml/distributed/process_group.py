"""The processes (ranks) of one training on several devices, and what they exchange.

All ranks run the same training on the same batches. Only the networks are divided: between a network's `body` and the
end of its `last_stage` a rank computes its own rows of the batch. The features are then gathered, and every rank does
the rest (losses, sample selection, memories of samples) on the whole batch and the same numbers. So methods,
checkpoints and the names of weights are those of one process. `ml.distributed.sharding` divides a network.

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

START_TIMEOUT = datetime.timedelta(days=1)  # to wait for rank 0 to start: the launcher ends a wait that is in vain
MAX_DRIFT = 1e-3  # between ranks, as a share of a tensor's largest value: rounding is a thousand times smaller
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # all ranks run on one machine


class RankFailure(RuntimeError):
    """Another rank has ended or does not answer. The training itself may be all right and can be resumed."""


class ProcessGroup:
    """The ranks of one training, as one of them sees it. Every method that communicates must be called by all ranks.

    Attributes:
        rank: This process's number, from 0. Rank 0 alone reports, writes checkpoints and publishes.
        size: How many ranks there are.
        device: This rank's device.
        active: False after `leave`; networks then compute whole batches again.
    """

    def __init__(self, rank: int, size: int, device: torch.device, store: FileStore) -> None:
        """Use `join`."""
        self.rank, self.size, self.device = rank, size, device
        self.active = True
        self._store = store
        self._broadcasts = 0  # objects that were broadcast so far
        self._batch_rows = 0  # B of the batch that is inside a network
        self._forward = contextlib.ExitStack()  # undoes what `scatter_batch` changed for the forward pass

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copied network belongs to the same group

    @classmethod
    def join(cls, rendezvous: Path, rank: int, size: int, device: torch.device, *, timeout_s: float) -> Self:
        """Connect to the other ranks.

        Args:
            rendezvous: A file that does not exist yet, the same for all ranks.
            rank: This process's number, from 0.
            size: How many ranks there are.
            device: This rank's device. GPUs communicate by NCCL, CPUs by gloo.
            timeout_s: Seconds that every exchange waits for the other ranks. Only the wait for rank 0 to start may take
                longer, since it may be loading data.

        Raises:
            RankFailure: A rank does not answer in time.
        """
        for name, value in LOOPBACK.items():
            os.environ.setdefault(name, value)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        timeout = datetime.timedelta(seconds=timeout_s)
        with _rank_failures():
            # rank 0 may be late, the others may not
            store = FileStore(str(rendezvous), size)
            if rank == 0:
                store.set("begun", "")
            else:
                store.wait(["begun"], START_TIMEOUT)
            store.set_timeout(timeout)
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        return cls(rank, size, device, store)

    def leave(self) -> None:
        """Wait for the other ranks, then end the group. Networks compute whole batches from now on."""
        with _rank_failures():
            dist.barrier()
        self.active = False
        dist.destroy_process_group()

    # What ranks agree on

    def broadcast_object(self, value: Any = None) -> Any:
        """Rank 0's `value`, any JSON value, on every rank. The others' `value` is ignored."""
        self._broadcasts += 1
        with _rank_failures():
            if self.rank == 0:
                self._store.set(f"object {self._broadcasts}", json.dumps(value))
                return value
            return json.loads(self._store.get(f"object {self._broadcasts}"))

    def minimum(self, number: int) -> int:
        """The smallest `number` of all ranks."""
        smallest = torch.tensor(number, dtype=torch.int64, device=self.device)
        with _rank_failures():
            dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every rank, in place, with those of rank 0."""
        for tensor in tensors:
            tensor.detach().copy_(self._from_first(tensor))

    def sync_check(self, tensors: Iterable[Tensor]) -> None:
        """As `broadcast`, and check that the ranks agreed before.

        On CPUs nothing ever differs. GPUs may choose different algorithms, and so round differently.

        Raises:
            RankDivergence: On every rank, if a tensor of one of them differed by more than rounding.
        """
        drift = torch.zeros((), device=self.device)
        for tensor in tensors:
            common = self._from_first(tensor)
            if tensor.is_floating_point() and tensor.numel():
                difference = (tensor.detach() - common).abs().max() / common.abs().max().clamp_min(1e-12)
                # NaN is left to the check of the losses
                drift = torch.maximum(drift, difference.float().nan_to_num(0.0))
            tensor.detach().copy_(common)
        with _rank_failures():
            dist.all_reduce(drift, dist.ReduceOp.MAX)
        if float(drift) > MAX_DRIFT:
            raise errors.RankDivergence(float(drift))

    def _from_first(self, tensor: Tensor) -> Tensor:
        common = tensor.detach().clone(memory_format=torch.contiguous_format)
        with _rank_failures():
            dist.broadcast(common, 0)
        return common

    # Shards of a batch

    def shard(self, rows: int) -> slice:
        """This rank's part of `rows` rows: consecutive, maybe empty, and at most one row longer than another rank's."""
        return slice(*(rows * number // self.size for number in (self.rank, self.rank + 1)))

    def is_empty_shard(self, rows: int) -> bool:
        """Whether this rank's part of `rows` rows is empty.

        The rank then computes one row whose result is discarded: not every operator accepts an empty batch, and all
        ranks have to take part in every exchange.
        """
        shard = self.shard(rows)
        return bool(shard.start == shard.stop)

    def is_idle(self) -> bool:
        """Whether this rank's part of the batch that is inside a network is empty."""
        return self.is_empty_shard(self._batch_rows)

    def gather_rows(self, shard: Tensor, rows: int) -> Tensor:
        """Concatenate the parts of all ranks: (b, ...) -> (B, ...), where `rows` is B."""
        counts = [rows * (number + 1) // self.size - rows * number // self.size for number in range(self.size)]
        # an exchange wants one shape on all ranks
        padded = shard.new_zeros((max(counts), *shard.shape[1:]))
        padded[: counts[self.rank]] = shard[: counts[self.rank]]
        gathered = self.all_gather(padded)
        return torch.cat([rows_of_rank[:count] for rows_of_rank, count in zip(gathered, counts, strict=True)])

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, which have one shape and dtype: (...) -> (size, ...)."""
        gathered = tensor.new_empty((self.size, *tensor.shape))
        # as bytes, because a backend does not know every dtype
        sent, received = tensor.contiguous().view(-1).view(torch.uint8), gathered.view(-1).view(torch.uint8)
        with _rank_failures():
            dist.all_gather_into_tensor(received, sent)
        return gathered

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place and the same bits on each."""
        with _rank_failures():
            dist.all_reduce(tensor)
        return tensor

    # The forward pass of a network (called by the hooks of `ml.distributed.sharding`)

    def scatter_batch(self, module: nn.Module, images: Tensor) -> Tensor:
        """Before a `body`: this rank's rows of the batch, (B, ...) -> (b, ...), one row where it has none."""
        self._forward.close()
        self._batch_rows = len(images)
        if module.training:
            self._forward.enter_context(self._rank_rng())
        shard: Tensor = _Scatter.apply(images, self)
        return shard

    def gather_features(self, features: Tensor) -> Tensor:
        """After a `last_stage`: the features of all rows, (b, ...) -> (B, ...)."""
        self._forward.close()
        gathered: Tensor = _Gather.apply(features, self._batch_rows, self)
        return gathered

    @contextlib.contextmanager
    def _rank_rng(self) -> Iterator[None]:
        """Seed dropout differently on every rank. All ranks draw one seed, so their global states stay alike."""
        seed = int(torch.randint(2**62, ())) + self.rank
        gpus = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):
            torch.default_generator.manual_seed(seed)
            if gpus:
                torch.cuda.manual_seed(seed)
            yield


class _Scatter(torch.autograd.Function):
    """Forward: this rank's rows. Backward: the gradients of all rows, since every rank computed all of the images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, group: ProcessGroup) -> Tensor:
        ctx.rows, ctx.group = len(images), group
        return images[:1] if group.is_empty_shard(len(images)) else images[group.shard(len(images))]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.gather_rows(grad, ctx.rows), None


class _Gather(torch.autograd.Function):
    """Forward: the rows of all ranks. Backward: the gradient of this rank's rows, the rest being alike."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, rows: int, group: ProcessGroup) -> Tensor:
        ctx.rows, ctx.group = rows, group
        return group.gather_rows(features, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        shard = torch.zeros_like(grad[:1]) if ctx.group.is_empty_shard(ctx.rows) else grad[ctx.group.shard(ctx.rows)]
        return shard, None, None


@contextlib.contextmanager
def _rank_failures() -> Iterator[None]:
    """Each backend reports a lost rank by a RuntimeError of its own."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankFailure(f"another process of this training has ended or does not answer: {error}") from error
