"""The two networks of DeNLL as ordinary networks, whose input is what the deconfounder makes of an image.

Shapes: `B` batch, `C` classes, `D` features; images `(B, 3, H, W)` normalised, features `(B, D)`, logits `(B, C)`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ml.blocks import deconfounding
from ml.networks import chain


class ActivationRecorder:
    """The forward passes of a branch, as long as recording is on: each thread has its own."""

    def __init__(self) -> None:
        self._records: dict[int, list[deconfounding.Activations]] = {}  # by thread, of those that record

    @property
    def records(self) -> list[deconfounding.Activations]:
        """What this thread has recorded."""
        return self._records.get(threading.get_ident(), [])

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record within the block; the records are dropped at its end."""
        self._records[threading.get_ident()] = []
        try:
            yield
        finally:
            self._records.pop(threading.get_ident(), None)  # one recording within another ends both

    def record(self, activations: deconfounding.Activations) -> None:
        """Add a forward pass if recording is on."""
        if threading.get_ident() in self._records:
            self.records.append(activations)


class DebiasedBranch(chain.Chain):
    """g1 or g2: a network of the user's choice whose input is what the deconfounder makes of an image.

    Attributes:
        gate: What a pass predicts, logits (B, C); None is its own logits.
    """

    gate: Callable[[deconfounding.Activations], Tensor] | None = None

    def __init__(
        self, network: chain.Chain, make_input: Callable[[Tensor], Tensor], recorder: ActivationRecorder
    ) -> None:
        """Take over the parts of `network`.

        Args:
            network: reads what `make_input` returns.
            make_input: images (B, 3, H, W) -> the network's input.
            recorder: of the forward passes.
        """
        super().__init__(network.body, network.last_stage, network.classifier, network.image_size)
        self.make_input = make_input

        # a function and no bound method, so that a copy of the branch shares the recorder
        def record(activations: deconfounding.Activations) -> None:
            recorder.record(activations)

        self.record: Callable[[deconfounding.Activations], None] = record

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> features of the branch's input (B, D)."""
        return super().features(self.make_input(images))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C)."""
        own = self.activations(images)
        self.record(own)
        return own.logits if self.gate is None else self.gate(own)

    def activations(self, images: Tensor) -> deconfounding.Activations:
        """A forward pass for images (B, 3, H, W) that is neither recorded nor gated."""
        features = self.features(images)
        return deconfounding.Activations(images, features, self.classifier(features))


def find_branches(method: nn.Module) -> list[DebiasedBranch]:
    """All branches that a base method trains, copies that it has made of them included."""
    return [module for module in method.modules() if isinstance(module, DebiasedBranch)]


def make_branch(
    network: chain.Chain,
    deconfounder: deconfounding.Deconfounder | deconfounding.PairedInputs,
    recorder: ActivationRecorder,
    *,
    second: bool,
) -> DebiasedBranch:
    """g1, or g2 if `second`, made of a network.

    `deconfounder` and `recorder` are shared by every copy that a base method makes of the branch.
    """
    if deconfounder.params.fusion == "concat":
        chain.widen_stem(network, 6)
    return DebiasedBranch(network, lambda images: deconfounder.network_input(images, second=second), recorder)


class GatedPairs:
    """Pairs of branches that predict o_1 and o_2 of Eq. 6 in place of their own logits.

    The branches of g1 and those of g2 are partners in the order in which they are added. A copy that a base method
    makes of a branch, as an average of its weights, is gated with the partner of the original.
    """

    def __init__(self, gates: Callable[[], deconfounding.Gates]) -> None:
        """`gates` returns the gates; it is called in forward passes only."""
        self._gates = gates
        self._added: tuple[list[weakref.ref[DebiasedBranch]], ...] = ([], [])

    def add(self, branch: DebiasedBranch, *, second: bool) -> None:
        """Gate a branch of g1, or of g2 if `second`."""
        number, partners = len(self._added[second]), self._added[not second]
        self._added[second].append(weakref.ref(branch))

        def gate(own: deconfounding.Activations) -> Tensor:
            partner = partners[number]()
            assert partner is not None
            other = partner.activations(own.images)
            one, two = (other, own) if second else (own, other)
            gated: tuple[Tensor, Tensor] = self._gates()(one, two)
            return gated[second]

        branch.gate = gate
