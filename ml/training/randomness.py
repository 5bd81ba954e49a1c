"""The random generators of one training: one for each concern (order, augmentation ...), all seeded by the spec's seed.

So what one concern draws does not depend on the draws of another, nor on anything else in the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ml.training.spec import seed_for

CONCERN, MODULES = "concern/", "modules/"  # prefixes of the state's names


class Randomness:
    """The generators of a training.

    Attributes:
        order: Draws the order of images, on the CPU.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        """`seed` is the spec's; generators of concerns are on `device`."""
        self.order = torch.Generator().manual_seed(seed_for(seed, "order"))
        self._seed = seed
        self._device = device
        self._concerns: dict[str, torch.Generator] = {}
        self._modules = self._new_modules("modules")

    def _new_modules(self, name: str) -> list[Tensor]:
        """States for torch's global generators: the CPU's and, on a GPU, the GPU's."""
        devices = [torch.device("cpu"), *([self._device] if self._device.type == "cuda" else [])]
        seed = seed_for(self._seed, name)
        return [torch.Generator(device).manual_seed(seed).get_state() for device in devices]

    def generator(self, concern: str) -> torch.Generator:
        """The generator of one concern on the training's device, created at its first use."""
        if concern not in self._concerns:
            self._concerns[concern] = torch.Generator(self._device).manual_seed(seed_for(self._seed, concern))
        return self._concerns[concern]

    def generators(self) -> tuple[torch.Generator, ...]:
        """The generators of all concerns so far."""
        return tuple(self._concerns.values())

    @contextlib.contextmanager
    def module_rng(self) -> Iterator[None]:
        """Inside, torch's global generators, from which modules draw (dropout), have this training's state."""
        outside = self._swap(self._modules)
        try:
            yield
        finally:
            self._modules = self._swap(outside)

    @contextlib.contextmanager
    def preserved(self) -> Iterator[None]:
        """Restore all generators afterwards."""
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
        """The states of all generators, by name."""
        concerns = {CONCERN + concern: generator.get_state() for concern, generator in self._concerns.items()}
        modules = {f"{MODULES}{number}": state for number, state in enumerate(self._modules)}
        return {"order": self.order.get_state()} | concerns | modules

    def restore(self, tensors: Mapping[str, Tensor], step: int = 0) -> bool:
        """Set all generators to what `state` returned.

        The state of a generator on a GPU means nothing to one on a CPU, nor the other way round: where the device is of
        another kind, all but `order` are seeded anew, by the spec's seed, the concern and the step.

        Args:
            tensors: As `state` returned them.
            step: Of the training at that time.

        Returns:
            Whether the states are of this kind of device, so that the training goes on exactly.
        """
        self.order.set_state(tensors["order"])
        stored = [tensors[name] for name in sorted(name for name in tensors if name.startswith(MODULES))]
        is_exact = [len(state) for state in stored] == [len(state) for state in self._modules]
        self._modules = stored if is_exact else self._new_modules(f"modules/{step}")
        self._concerns = {}
        for name, tensor in tensors.items():
            if name.startswith(CONCERN):
                concern = name.removeprefix(CONCERN)
                if is_exact:
                    self.generator(concern).set_state(tensor)
                else:
                    self.generator(concern).manual_seed(seed_for(self._seed, f"{concern}/{step}"))
        return is_exact


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, modules that are built on the CPU are initialised from this seed; global generators are restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset every GPU's generator besides
        yield
