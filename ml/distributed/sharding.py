"""Makes a network compute this rank's rows of a batch, with the statistics and gradients of the whole batch.

The weights and their names stay as they are. What ranks exchange goes through `ml.distributed.process_group`.

Shapes: `B` rows of a batch, `b` of them this rank's (maybe none), `C` channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.distributed.process_group import ProcessGroup
from ml.method import Network


def shard_network(network: Network, group: ProcessGroup) -> Network:
    """Change `network` in place, so that each rank of `group` computes its rows of every batch until the group ends.

    Batch normalisation takes its statistics over the rows of all ranks, and gradients of weights are summed over ranks.

    Returns:
        The same network.
    """
    for part in (network.body, network.last_stage):
        for module in part.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = BatchNorm  # names of weights, copies and pretrained files stay as they are
                assert isinstance(module, BatchNorm)
                module.group = group
    _sum_gradients(network.body, group)  # first, so that a share enters with its parameters at hand
    _sum_gradients(network.last_stage, group)
    network.body.register_forward_pre_hook(
        lambda module, images: group.scatter_batch(module, *images) if group.active else None
    )
    network.last_stage.register_forward_hook(
        lambda module, inputs, features: group.gather_features(features) if group.active else None
    )
    return network


def _sum_gradients(part: nn.Module, group: ProcessGroup) -> None:
    """During a forward pass, replace the parameters by views of themselves whose gradients are summed over ranks.

    A hook on the parameters would also sum the gradient of a penalty on weights, which is the same on all ranks. Views
    need no care for copies of a network and for parameters that a method replaces, either.
    """
    replaced: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter]] = []

    def replace(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not (group.active and torch.is_grad_enabled()):
            return
        replaced.extend(
            (member._parameters, name, parameter)
            for member in module.modules()
            for name, parameter in member._parameters.items()
            if parameter is not None and parameter.requires_grad
        )
        views = _Sum.apply(group, *(parameter for _, _, parameter in replaced)) if replaced else ()
        for (parameters, name, _), view in zip(replaced, views, strict=True):
            parameters[name] = view

    def restore(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        for parameters, name, parameter in replaced:
            parameters[name] = parameter
        replaced.clear()

    part.register_forward_pre_hook(replace)
    part.register_forward_hook(restore, always_call=True)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the rows of all ranks, as in one process with the whole batch."""

    group: ProcessGroup

    def forward(self, input: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, C, H, W). Running statistics are updated by those of the whole batch."""
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
        """Mean (C,), variance (C,) and number of values of all ranks, joined as in Chan et al. (1979)."""
        precise = input.to(torch.promote_types(input.dtype, torch.float32))
        moments = precise.new_zeros(2 * self.num_features + 1)  # mean, sum of squares and count of this rank's rows
        if not self.group.is_idle():
            values = input.numel() // self.num_features
            variance, mean = torch.var_mean(precise, dim=(0, 2, 3), correction=0)
            moments = torch.cat([mean, variance * values, mean.new_full((1,), values)])
        sizes = [self.num_features, self.num_features, 1]
        means, squares, counts = torch.split(self.group.all_gather(moments), sizes, dim=1)
        count = counts.sum()
        mean = (means * counts).sum(dim=0) / count
        within = squares.sum(dim=0) + ((means - mean).square() * counts).sum(dim=0)
        return mean, within / count, count


class _Sum(torch.autograd.Function):
    """Forward: views of the parameters. Backward: their gradients summed over ranks, in one exchange."""

    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.layouts = group, [(parameter.shape, parameter.stride()) for parameter in parameters]
        ctx.set_materialize_grads(False)  # a parameter that had no part in the pass has no gradient
        return tuple(parameter.view_as(parameter) for parameter in parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [(number, grad) for number, grad in enumerate(grads) if grad is not None]
        sums: list[Tensor | None] = [None] * len(grads)
        if present:
            flat = present[0][1].new_empty(sum(grad.numel() for _, grad in present))
            offset = 0
            for number, grad in present:  # laid out like the parameter, so that the optimiser need not copy it
                shape, strides = ctx.layouts[number]
                sums[number] = flat.as_strided(shape, strides, offset).copy_(grad)
                offset += grad.numel()
            ctx.group.all_reduce_sum(flat)
        return (None, *sums)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with the mean and variance of all ranks' x."""

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
        group: ProcessGroup,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.group, ctx.idle = eps, group, group.is_idle()
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient with mean and variance constant, plus the part of it that goes through both."""
        x, weight, mean, variance, count = ctx.saved_tensors
        to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        # over the rows of all ranks: sums of grad and of grad * (x - mean) / deviation, (2, C)
        sums = ctx.group.all_reduce_sum(torch.stack([to_bias, to_weight]))
        deviation = (variance + ctx.eps).rsqrt()
        slope = weight * deviation.square() * sums[1] / count
        offset = weight * deviation * sums[0] / count - slope * mean
        if not ctx.idle:
            to_x = (to_x - (x * slope[:, None, None] + offset[:, None, None])).to(x.dtype)
        return to_x, to_weight, to_bias, None, None, None, None, None
