"""A method that uses the whole interface: phases, a reinitialised part, passes, two views, buffers, dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ml import method
from ml.blocks import losses
from ml.methods import About

ABOUT: About = {"title": "", "paper": "", "idea": "", "relative_cost": 1.0, "needs": [], "presets": {}}


class Params(method.MethodParams):
    """It has none."""


class Method(method.Method):
    memory: Tensor
    trusted: Tensor
    average: Tensor

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], method.Network]) -> None:
        super().__init__(params, labels, network)
        self.make = network
        self.network = network()
        self.dropout = nn.Dropout(0.2)
        self.register_buffer("memory", torch.zeros(len(labels), self.network.class_count))
        self.register_buffer("average", torch.zeros_like(self.network.classifier.get_parameter("weight")))
        self.register_buffer("trusted", torch.ones(len(labels), dtype=torch.bool))

    def phases(self, training: method.TrainHyperparameters) -> Sequence[method.Phase]:
        first = max(1, training.epochs // 3)

        def loss(batch: method.Batch) -> Tensor:
            logits = self.dropout(self.network(batch.images))
            batch.record_logits(logits)
            self.memory[batch.index] = 0.7 * self.memory[batch.index] + 0.3 * logits.detach().float()
            return losses.cross_entropy(logits, batch.labels)

        def mixing(batch: method.Batch) -> Tensor:
            share = torch.rand((), generator=batch.generator("mixing"), device=batch.labels.device)
            mixed = share * batch.views[0] + (1 - share) * batch.views[1]
            assert (batch.unlabelled is not None) == (batch.pass_index == 0)
            if batch.unlabelled is not None:
                batch.unlabelled.record_logits(self.network(batch.unlabelled.views[1]))
            return losses.cross_entropy(self.dropout(self.network(mixed)), batch.labels)

        def halve(_: method.Batch) -> None:
            for parameter in self.network.classifier.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(0.5)

        def update_average(_: method.Batch) -> None:
            self.average.lerp_(self.network.classifier.get_parameter("weight").detach(), 0.1)

        def optimizers() -> method.Optimizers:
            body = [p for p in self.network.parameters() if p.requires_grad]
            return method.Optimizers((training.sgd(body),), training.factor)

        def reinitialise(context: method.TrainContext) -> None:
            self.network.load_state_dict({**self.network.state_dict(), **_classifier(self.make())})

        def select(context: method.TrainContext) -> None:
            scored = context.score(self.network, views=2)
            self.trusted.copy_(scored.max(dim=1).values >= scored.max(dim=1).values.quantile(0.4))

        return [
            method.Phase(first, loss, optimizers, name="first"),
            method.Phase(0, loss, None, enter=reinitialise, name="reinitialisation"),
            method.Phase(
                training.epochs - first,
                mixing,
                None,
                before_step=halve,
                after_step=update_average,
                begin_epoch=select,
                passes=self._passes,
                views=("weak", "strong"),
                clip=5.0,
            ),
        ]

    def _passes(self) -> Sequence[method.Pass]:
        return [method.Pass(self.trusted, unlabelled=~self.trusted, share=0.25), method.Pass(~self.trusted)]

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def _classifier(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if name.startswith("classifier")}
