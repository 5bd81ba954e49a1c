"""Parts of a network made anew and trained while the others rest: progressive early stopping (Bai et al. 2021, Alg. 1).

A network keeps its modules and takes over the state of a fresh one's, so optimisers, checkpoints and wrappers stay
valid. What rests keeps its weights; statistics of batches move on, as in the released code. It knows no label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from ml.blocks import optimizers as owners
from ml.phase import Batch, Lab, Network, Optimizers, Phase

PARTS = ("body", "last_stage", "classifier")  # of every network, in their order; together all its parameters
TAIL = PARTS[1:]
PUBLISHED_STEPS = 1755  # 5 epochs of 45 000 images in batches of 128: the shortest renewal of the paper
LARGEST_RATE = 5e-3  # of Adam, on a new part


def renew(network: Network, fresh: Network, parts: Sequence[str]) -> None:
    """Give the named parts the weights and statistics of another network of the same kind."""
    for part in parts:
        getattr(network, part).load_state_dict(getattr(fresh, part).state_dict())


def train_only(network: Network, parts: Sequence[str]) -> None:
    """Let the named parts learn, and no others."""
    for part in PARTS:
        getattr(network, part).requires_grad_(part in parts)


def parameters(network: Network, parts: Sequence[str]) -> Iterator[nn.Parameter]:
    """Those of the named parts."""
    for part in parts:
        yield from getattr(network, part).parameters()


def reaching(learning_rate: float, steps: int) -> float:
    """A rate of Adam by which a new part comes as far in so many steps as by `learning_rate` in the published ones.

    Each step moves a weight by about the rate: in a short training 1e-4 would leave a new part as random as it began.
    """
    return max(learning_rate, min(LARGEST_RATE, learning_rate * PUBLISHED_STEPS / max(steps, 1)))


def refinement(
    network: Network,
    make: Callable[[], Network],
    parts: Sequence[str],
    *,
    epochs: int,
    learning_rate: float,
    loss: Callable[[Batch], Tensor],
    factor: Callable[[float], float],
    name: str,
) -> Phase:
    """A phase that begins by renewing the named parts and trains them alone, by Adam at a rate that never moves.

    `factor` is the schedule of whatever else a wrapper trains along.
    """

    def enter(_: Lab) -> None:
        renew(network, make(), parts)
        train_only(network, parts)

    def optimizers() -> Optimizers:
        adam = owners.adam(parameters(network, parts), learning_rate)
        return Optimizers((adam,), factor, steady=(adam,))

    return Phase(epochs, loss, optimizers, enter=enter, name=name)
