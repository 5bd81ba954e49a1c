"""How a network computes this rank's rows as a part of the whole batch: statistics and gradients are those of all rows.

The weights stay where they are, under the names that they have. `ml.distributed.process_group` exchanges
what ranks share.

Shapes: `B` rows of a batch, `b` of them this rank's (maybe none), `C` channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.distributed.process_group import ProcessGroup
from ml.method import Network


def shard(network: Network, group: ProcessGroup) -> Network:
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


def _gradients_add_up(part: nn.Module, group: ProcessGroup) -> None:
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

    group: ProcessGroup

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


class _Sum(torch.autograd.Function):
    """Parameters as they are; back, their gradients summed over ranks in one exchange."""

    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, *parameters: Tensor) -> tuple[Tensor, ...]:
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
        group: ProcessGroup,
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
