"""Parts of a network are reinitialised and trained while the others are frozen, as progressive early stopping does.

Bai et al., NeurIPS 2021, Algorithm 1. A network keeps its modules and loads the state of a fresh one's, so optimisers,
checkpoints and wrappers stay valid. Frozen parts keep their weights; their batch statistics go on, as in the released
code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from ml.blocks import optimizers as optimizer_builders
from ml.blocks import schedules
from ml.method import Batch, Network, Optimizers, Phase, TrainContext, TrainHyperparameters

NETWORK_PARTS = ("body", "last_stage", "classifier")  # of every network, in their order; together all its parameters
LATER_PARTS = NETWORK_PARTS[1:]
PUBLISHED_STEPS = 1755  # 5 epochs of 45 000 images in batches of 128: the paper's shortest training of one part
MAX_LEARNING_RATE = 5e-3  # of Adam, on a reinitialised part


def reinitialise(network: Network, fresh: Network, parts: Sequence[str]) -> None:
    """Load the named parts' weights and batch statistics from `fresh`, a network of the same kind.

    Where the training starts from pretrained weights, `fresh` has them and their statistics; its classifier is new.
    """
    for part in parts:
        getattr(network, part).load_state_dict(getattr(fresh, part).state_dict())


def train_only(network: Network, parts: Sequence[str]) -> None:
    """Freeze all parts but the named ones."""
    for part in NETWORK_PARTS:
        getattr(network, part).requires_grad_(part in parts)


def part_parameters(network: Network, parts: Sequence[str]) -> Iterator[nn.Parameter]:
    """The parameters of the named parts."""
    for part in parts:
        yield from getattr(network, part).parameters()


def rescaled_learning_rate(learning_rate: float, steps: int) -> float:
    """A learning rate of Adam by which a reinitialised part gets as far in few steps as in the published ones.

    Adam moves a weight by about its rate in each step: in a short training 1e-4 would leave a part near its random
    start.

    Args:
        learning_rate: the published one.
        steps: of the training of the part.

    Returns:
        A rate in proportion, at most 5e-3 and never below `learning_rate`.
    """
    return max(learning_rate, min(MAX_LEARNING_RATE, learning_rate * PUBLISHED_STEPS / max(steps, 1)))


class FreezeSchedule:
    """Consecutive phases of a training, each of which trains some parts of a network and freezes the others.

    The training's learning rate schedule runs through all of them.
    """

    def __init__(
        self, network: Network, make_network: Callable[[], Network], training: TrainHyperparameters, samples: int
    ) -> None:
        """Plan phases of one network.

        Args:
            network: is trained.
            make_network: returns a fresh network of the same kind.
            training: the whole training's hyperparameters.
            samples: images of an epoch.
        """
        self.network, self.make_network = network, make_network
        self.training, self.samples = training, samples

    def sgd(self, begin: int, epochs: int, parts: Sequence[str]) -> Callable[[], Optimizers]:
        """Builds the training's SGD over the named parts, for `epochs` epochs from epoch `begin` on."""
        factor = self._factor(begin, epochs)
        return lambda: Optimizers((self.training.sgd(part_parameters(self.network, parts)),), factor)

    def refinement_phase(
        self, begin: int, epochs: int, parts: Sequence[str], learning_rate: float, loss: Callable[[Batch], Tensor]
    ) -> Phase:
        """A phase that reinitialises the named parts and then trains them alone, by Adam at a constant rate.

        Args:
            begin: epoch with which the phase begins.
            epochs: of the phase.
            parts: what is reinitialised and trained.
            learning_rate: Adam's, before `rescaled_learning_rate`.
            loss: of a batch.
        """
        rate = rescaled_learning_rate(learning_rate, epochs * self.samples // self.training.batch_size)
        factor = self._factor(begin, epochs)

        def enter(_: TrainContext) -> None:
            reinitialise(self.network, self.make_network(), parts)
            train_only(self.network, parts)

        def optimizers() -> Optimizers:
            adam = optimizer_builders.adam(part_parameters(self.network, parts), rate)
            return Optimizers((adam,), factor, constant_rate=(adam,))  # the factor is for what a wrapper trains

        return Phase(epochs, loss, optimizers, enter=enter, name=f"refine {parts[0].replace('_', ' ')}")

    def _factor(self, begin: int, epochs: int) -> Callable[[float], float]:
        training = self.training
        return schedules.part_of_schedule(training.factor, begin / training.epochs, (begin + epochs) / training.epochs)
