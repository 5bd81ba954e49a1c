"""All random states of one training, each concern's own, all derived from the spec's seed.

So neither a new concern nor anybody else in the process moves the draws of another. It knows nothing of what is drawn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ml.training.spec import seed_for

CONCERN, MODULES = "concern/", "modules/"  # prefixes of the state's names


class Randomness:
    """The generators of a training; `state` and `restore` are what a checkpoint holds of them."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.order = torch.Generator().manual_seed(seed_for(seed, "order"))  # of images in an epoch, on the CPU
        self._seed = seed
        self._device = device
        self._concerns: dict[str, torch.Generator] = {}
        modules = seed_for(seed, "modules")
        self._modules = [torch.Generator().manual_seed(modules).get_state()]
        if device.type == "cuda":
            self._modules.append(torch.Generator(device).manual_seed(modules).get_state())

    def generator(self, concern: str) -> torch.Generator:
        """The generator of one concern on the training's device, made when first asked for."""
        if concern not in self._concerns:
            self._concerns[concern] = torch.Generator(self._device).manual_seed(seed_for(self._seed, concern))
        return self._concerns[concern]

    def on_device(self) -> tuple[torch.Generator, ...]:
        """Those of all concerns so far: the training's device draws from them, and from what modules draw from."""
        return tuple(self._concerns.values())

    @contextlib.contextmanager
    def of_modules(self) -> Iterator[None]:
        """Swap in what modules draw from (dropout), which is torch's global state and belongs to the whole process."""
        outside = self._swap(self._modules)
        try:
            yield
        finally:
            self._modules = self._swap(outside)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """A block after which nothing was drawn."""
        before = self.state()
        try:
            yield
        finally:
            self.restore(before)

    def _swap(self, states: list[Tensor]) -> list[Tensor]:
        before = [torch.get_rng_state()]
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            before.append(torch.cuda.get_rng_state(self._device))
            torch.cuda.set_rng_state(states[1], self._device)
        return before

    def state(self) -> dict[str, Tensor]:
        """Everything to go on from, by name."""
        concerns = {CONCERN + concern: each.get_state() for concern, each in self._concerns.items()}
        modules = {f"{MODULES}{number}": each for number, each in enumerate(self._modules)}
        return {"order": self.order.get_state()} | concerns | modules

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what `state` described."""
        self.order.set_state(tensors["order"])
        self._modules = [tensors[f"{MODULES}{number}"] for number in range(len(self._modules))]
        self._concerns = {}
        for name, tensor in tensors.items():
            if name.startswith(CONCERN):
                self.generator(name.removeprefix(CONCERN)).set_state(tensor)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block in which new modules initialise themselves on the CPU from this seed, disturbing nobody."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset every GPU's generator besides
        yield
