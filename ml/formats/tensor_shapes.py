"""Names and shapes of the tensors that pretrained weights of a network must have.

The catalog publishes them for every network as a document that holds each module once, since networks repeat
themselves: a module is a line of `name=shape` or `name=#N`, where N is the position of another module's line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml.formats.errors import printable

ANY = 0  # in a shape: a dimension that follows the size of the images
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape | None]  # by name; None: it may be missing, and have any shape
OWN_PARTS = ("body.", "last_stage.")  # names in a network here may have these before a published name


class UnfittingWeights(ValueError):
    """A tensor is missing, or has another shape; the message names it."""


def match(required: Shapes, shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Which tensor of a file is which of a network.

    Args:
        required: Of the network.
        shapes: Of the file, by its names. Tensors that the network does not have are ignored.

    Returns:
        Names in the file by those of the network; those that are missing, or have a shape that does not matter and
        differs, are left out.

    Raises:
        UnfittingWeights: The first tensor of the network that the file does not have, or in another shape.
    """
    names: dict[str, str] = {}
    for name, shape in required.items():
        own = next((own for own in (name, *(part + name for part in OWN_PARTS)) if own in shapes), None)
        if own is not None and (shape is None or _fits(shapes[own], shape)):
            names[name] = own
        elif shape is not None and own is None:
            raise UnfittingWeights(f"{name} ({_text(shape)}) is missing{_first_unexpected(name, required, shapes)}")
        elif shape is not None and own is not None:
            raise UnfittingWeights(f"{printable(own)} is {_text(shapes[own])}, not {_text(shape)}")
    return names


def pack(networks: Mapping[str, Shapes]) -> dict[str, Any]:
    """The document with what each network requires, as JSON values."""
    lines: dict[str, int] = {}
    return {"networks": {name: _pack(shapes, lines) for name, shapes in networks.items()}, "modules": list(lines)}


def unpack(document: Mapping[str, Any], network: str) -> dict[str, Shape | None]:
    """What a network of the document requires."""
    shapes: dict[str, Shape | None] = {}
    _unpack(document["modules"], document["networks"][network], "", shapes)
    return shapes


def _pack(shapes: Shapes, lines: dict[str, int]) -> int:
    """The position of the line of a module, added where it is new, behind those that it names."""
    members: dict[str, dict[str, Shape | None]] = {}
    for name, shape in shapes.items():
        first, _, rest = name.partition(".")
        members.setdefault(first, {})[rest] = shape
    entries = [
        f"{first}={_text(member['']) if '' in member else f'#{_pack(member, lines)}'}"
        for first, member in members.items()
    ]
    return lines.setdefault(" ".join(entries), len(lines))


def _unpack(lines: list[str], position: int, prefix: str, shapes: dict[str, Shape | None]) -> None:
    for entry in lines[position].split():
        name, _, value = entry.partition("=")
        if value.startswith("#"):
            _unpack(lines, int(value[1:]), f"{prefix}{name}.", shapes)
        else:
            shapes[prefix + name] = _shape(value)


def _text(shape: Shape | None) -> str:
    """A shape as `64x3x7x7`; `any` where none is required, `scalar` for that of a single number."""
    if shape is None:
        return "any"
    return "x".join("?" if size == ANY else str(size) for size in shape) or "scalar"


def _shape(text: str) -> Shape | None:
    if text == "any":
        return None
    return () if text == "scalar" else tuple(ANY if size == "?" else int(size) for size in text.split("x"))


def _fits(shape: Shape, required: Shape) -> bool:
    """Whether a tensor has the required shape, or is a larger square kernel, of which the centre is taken."""
    if len(shape) == len(required) == 4 and shape[:2] == required[:2]:
        height, width = required[2:]
        return shape == required or (height == width and shape[2] == shape[3] > height)
    return len(shape) == len(required) and all(need in (ANY, size) for size, need in zip(shape, required, strict=True))


def _first_unexpected(missing: str, required: Shapes, shapes: Mapping[str, Shape]) -> str:
    """Of a file that lacks a tensor: the one that may be it under a longer name, or the first that fits no name."""
    wrapped = next((name for name in shapes if name.endswith(f".{missing}")), None)
    if wrapped is not None:
        return f"; remove {printable(wrapped.removesuffix(missing))} from the names"
    unexpected = next((name for name in shapes if name not in required), None)
    return "" if unexpected is None else f"; unexpected is {printable(unexpected)} ({_text(shapes[unexpected])})"
