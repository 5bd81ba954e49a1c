"""Layer-wise learning rates: the earlier a module of a network, the slower it learns (Howard and Ruder, ACL 2018).

The depth of a parameter is 0 in a network's classifier, 1 in its last stage, and one more with every module of its body
that has parameters, from the end to the stem. Its learning rate is multiplied by decay ** depth. What belongs to no
network (gates, variables of samples) has depth 0. This is done to the optimisers when a phase has built them, so it
holds for every method and every kind of optimiser.
"""

from __future__ import annotations

from typing import Any

from torch import nn, optim

from ml.method import Network


def scale(optimizer: optim.Optimizer, method: nn.Module, decay: float) -> None:
    """Divide the groups of a new optimiser by depth, in place, and scale their learning rates.

    Args:
        optimizer: Has taken no step. Groups stay in their order, each with the smallest depth first.
        method: Has the networks.
        decay: Factor on the learning rate with every step of depth, in (0, 1]; 1 changes nothing.
    """
    if decay == 1.0:
        return
    depths = parameter_depths(method)
    divided: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_depth: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_depth.setdefault(depths.get(parameter, 0), []).append(parameter)
        for depth, parameters in sorted(by_depth.items()):
            divided.append({**group, "params": parameters, "lr": group["lr"] * decay**depth})
    optimizer.param_groups = divided


def parameter_depths(method: nn.Module) -> dict[nn.Parameter, int]:
    """The depth of every parameter of all networks within a method."""
    depths: dict[nn.Parameter, int] = {}
    for network in method.modules():
        if isinstance(network, Network):
            modules = [network.classifier, network.last_stage, *reversed(list(network.body.children()))]
            parts = [list(module.parameters()) for module in modules]
            for depth, parameters in enumerate(part for part in parts if part):
                depths.update(dict.fromkeys(parameters, depth))
    return depths
