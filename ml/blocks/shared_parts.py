"""What DeNLL's two networks share: the localization module and the gates, as parts of a phase of the base methods.

The gates belong to the classifier: they are reset when a base method reinitialises it, and frozen while it is frozen.
The localization module belongs to the body: it is frozen while the body is frozen, and never reinitialised.
"""

from __future__ import annotations

import torch
from torch import nn

from ml.blocks import branches, method_pair
from ml.blocks.deconfounding import Deconfounder, Gates, PairedInputs
from ml.method import TrainContext, TrainHyperparameters


def enter_phase(
    method: nn.Module,
    pair: method_pair.PhasePair,
    deconfounder: Deconfounder | PairedInputs,
    gates: Gates | None,
    context: TrainContext,
) -> None:
    """Both base methods' own preparation; gates and localization module then follow classifier and body.

    Args:
        method: has the branches of both base methods.
        pair: the phase.
        deconfounder: has the localization module, if there is one.
        gates: None without gates.
        context: of the training.
    """
    trained = branches.find_branches(method)
    before = [branch.classifier.weight.detach().clone() for branch in trained]
    pair.enter(context)
    after = [branch.classifier.weight for branch in trained]

    if gates is not None:
        if not all(map(torch.equal, before, after)):  # the classifier was reinitialised
            gates.reset()
        gates.requires_grad_(any(branch.classifier.weight.requires_grad for branch in trained))
    if deconfounder.localization is not None:
        trains_body = any(p.requires_grad for branch in trained for p in branch.body.parameters())
        deconfounder.localization.requires_grad_(trains_body)


def optimizers(
    deconfounder: Deconfounder | PairedInputs, gates: Gates | None, training: TrainHyperparameters
) -> list[torch.optim.Optimizer]:
    """SGD without weight decay for the localization module and the gates; arguments as of `enter_phase`."""
    shared = []
    if deconfounder.localization is not None:
        parameters = deconfounder.localization.parameters()
        shared.append(training.sgd(parameters, scale=deconfounder.params.lm_learning_rate, weight_decay=0.0))
    if gates is not None:
        shared.append(training.sgd(gates.parameters(), weight_decay=0.0))
    return shared
