"""Parts of a network made anew and trained while the others rest: progressive early stopping (Bai et al. 2021, Alg. 1).

A network keeps its modules and takes over the state of a fresh one's, so optimisers, checkpoints and wrappers stay
valid. What rests keeps its weights; statistics of batches move on, as in the released code. It knows no label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from ml.blocks import optimizers as owners
from ml.blocks import schedules
from ml.method import Batch, Network, Optimizers, Phase, TrainContext, TrainHyperparameters

NETWORK_PARTS = ("body", "last_stage", "classifier")  # of every network, in their order; together all its parameters
LATER_PARTS = NETWORK_PARTS[1:]
PUBLISHED_STEPS = 1755  # 5 epochs of 45 000 images in batches of 128: the shortest renewal of the paper
MAX_LEARNING_RATE = 5e-3  # of Adam, on a new part


def reinitialise(network: Network, fresh: Network, parts: Sequence[str]) -> None:
    """Give the named parts the weights and statistics of another network of the same kind."""
    for part in parts:
        getattr(network, part).load_state_dict(getattr(fresh, part).state_dict())


def train_only(network: Network, parts: Sequence[str]) -> None:
    """Let the named parts learn, and no others."""
    for part in NETWORK_PARTS:
        getattr(network, part).requires_grad_(part in parts)


def part_parameters(network: Network, parts: Sequence[str]) -> Iterator[nn.Parameter]:
    """Those of the named parts."""
    for part in parts:
        yield from getattr(network, part).parameters()


def rescaled_learning_rate(learning_rate: float, steps: int) -> float:
    """A rate of Adam by which a new part comes as far in so many steps as by `learning_rate` in the published ones.

    Each step moves a weight by about the rate: in a short training 1e-4 would leave a new part as random as it began.
    """
    return max(learning_rate, min(MAX_LEARNING_RATE, learning_rate * PUBLISHED_STEPS / max(steps, 1)))


class FreezeSchedule:
    """Stretches of one training, in each of which some parts of a network learn and the others rest.

    The spec's schedule counts through all of them.
    """

    def __init__(
        self, network: Network, make: Callable[[], Network], training: TrainHyperparameters, samples: int
    ) -> None:
        """`make` gives the fresh networks whose parts are taken over; `samples` are seen in an epoch."""
        self.network, self.make = network, make
        self.training, self.samples = training, samples

    def sgd(self, begin: int, epochs: int, parts: Sequence[str]) -> Callable[[], Optimizers]:
        """The spec's SGD over the named parts, for so many epochs after the first `begin`."""
        factor = self._factor(begin, epochs)
        return lambda: Optimizers((self.training.sgd(part_parameters(self.network, parts)),), factor)

    def refinement(
        self, begin: int, epochs: int, parts: Sequence[str], learning_rate: float, loss: Callable[[Batch], Tensor]
    ) -> Phase:
        """A phase that begins by renewing the named parts and trains them alone, by Adam at a rate that never moves.

        The rate is `reaching(learning_rate)`; whatever else a wrapper trains along follows the schedule.
        """
        rate = rescaled_learning_rate(learning_rate, epochs * self.samples // self.training.batch_size)
        factor = self._factor(begin, epochs)

        def enter(_: TrainContext) -> None:
            reinitialise(self.network, self.make(), parts)
            train_only(self.network, parts)

        def optimizers() -> Optimizers:
            adam = owners.adam(part_parameters(self.network, parts), rate)
            return Optimizers((adam,), factor, constant_rate=(adam,))

        return Phase(epochs, loss, optimizers, enter=enter, name=f"refine {parts[0].replace('_', ' ')}")

    def _factor(self, begin: int, epochs: int) -> Callable[[float], float]:
        training = self.training
        return schedules.part_of_schedule(training.factor, begin / training.epochs, (begin + epochs) / training.epochs)
