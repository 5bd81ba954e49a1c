"""Which tensors weights must have: packed and unpacked without loss, and matched with those of a file."""

from __future__ import annotations

import pytest

from ml.formats import tensor_shapes
from ml.formats.tensor_shapes import ANY, Shape, UnfittingWeights

CONVOLUTION: dict[str, Shape | None] = {"weight": (8, 3, 3, 3), "bias": (8,), "steps": None, "scale": ()}
NETWORK: dict[str, Shape | None] = {
    **{f"blocks.{n}.{name}": shape for n in range(12) for name, shape in CONVOLUTION.items()},
    "positions": (1, ANY, 16),
    "head.weight": None,
}


def test_what_is_packed_is_unpacked_and_modules_that_repeat_stand_once() -> None:
    networks = {"one": NETWORK, "two": {f"encoder.{name}": shape for name, shape in NETWORK.items()}}
    document = tensor_shapes.pack(networks)

    assert {name: tensor_shapes.unpack(document, name) for name in document["networks"]} == networks
    assert document["modules"].count("weight=8x3x3x3 bias=8 steps=any scale=scalar") == 1
    assert len(document["modules"]) == 5  # convolution, blocks, head, and the two networks


def file(changes: dict[str, Shape | None]) -> dict[str, Shape]:
    """Tensors that fit the network, but for some; None leaves one out."""
    return {name: shape for name, shape in (NETWORK | changes).items() if shape is not None}


@pytest.mark.parametrize("changes", [
    {}, {"blocks.3.steps": (4, 4)}, {"head.weight": (7, 16)}, {"positions": (1, 50, 16)}, {"more": (3,)},
    {"blocks.0.weight": (8, 3, 7, 7)},
])  # fmt: skip
def test_what_a_network_can_take_fits(changes: dict[str, Shape | None]) -> None:
    names = tensor_shapes.match(NETWORK, file(changes))

    assert {name for name, shape in NETWORK.items() if shape is not None} <= set(names)
    assert all(name == own for name, own in names.items())


@pytest.mark.parametrize(("changes", "message"), [
    ({"blocks.11.bias": None}, "blocks.11.bias (8) is missing"),
    ({"blocks.11.bias": None, "blocks.5.bias": None}, "blocks.5.bias (8) is missing"),
    ({"blocks.2.scale": None, "scales": (12,)}, "blocks.2.scale (scalar) is missing; unexpected is scales (12)"),
    ({"blocks.2.scale": None, "ema.blocks.2.scale": ()}, "remove ema. from the names"),
    ({"blocks.2.scale": None, "a\n": ()}, r"unexpected is a\n (scalar)"),
    ({"blocks.2.scale": (1,)}, "blocks.2.scale is 1, not scalar"),
    ({"blocks.0.weight": (8, 3, 1, 1)}, "blocks.0.weight is 8x3x1x1, not 8x3x3x3"),
    ({"blocks.0.weight": (8, 3, 7, 3)}, "blocks.0.weight is 8x3x7x3, not 8x3x3x3"),
    ({"blocks.0.weight": (8, 1, 7, 7)}, "blocks.0.weight is 8x1x7x7, not 8x3x3x3"),
    ({"positions": (1, 50, 32)}, "positions is 1x50x32, not 1x?x16"),
])  # fmt: skip
def test_the_first_tensor_that_does_not_fit_is_named(changes: dict[str, Shape | None], message: str) -> None:
    with pytest.raises(UnfittingWeights) as raised:
        tensor_shapes.match(NETWORK, file(changes))

    assert message in str(raised.value)


def test_names_may_begin_with_the_part_of_a_network() -> None:
    required: dict[str, Shape | None] = {"conv.weight": (8, 3, 3, 3), "bn.weight": (8,)}
    shapes = {"body.conv.weight": (8, 3, 3, 3), "last_stage.bn.weight": (8,)}

    assert tensor_shapes.match(required, shapes) == {
        "conv.weight": "body.conv.weight", "bn.weight": "last_stage.bn.weight"
    }  # fmt: skip
