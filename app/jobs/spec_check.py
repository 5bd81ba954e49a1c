"""Settings of a training that exclude each other, which a schema cannot express. `ml` refuses the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.catalog import Catalog
from app.errors import Fault, InvalidRequest
from app.http import problems


def check(resolved: dict[str, Any], catalog: Catalog) -> None:
    """Raise InvalidRequest, with a pointer for each fault, if settings of a job or its baselines exclude each other.

    Args:
        resolved: The request with every default filled in.
        catalog: Says which methods mix images.
    """
    methods = [resolved, *resolved.get("compare_with", [])]
    if faults := _mixing_faults(resolved.get("mixup", 0.0), methods, catalog) + _augmentation_faults(resolved):
        raise InvalidRequest(problems.summary(faults), errors=faults)


def _mixing_faults(mixup: float, methods: Sequence[dict[str, Any]], catalog: Catalog) -> list[Fault]:
    """One fault if images would be mixed twice; `methods` have their names and params."""
    mixing = [entry["method"] for entry in methods if catalog.mixes(entry["method"], entry["params"])]
    if not mixup or not mixing:
        return []
    detail = f"It must be 0: {', '.join(mixing)} or the base method mixes images already."
    return [Fault("/mixup", "excluded", detail)]


def _augmentation_faults(resolved: dict[str, Any]) -> list[Fault]:
    """A fault for each change of pixels that a frozen part would have to see: it is run once for every image."""
    if not resolved.get("pretrained") or resolved.get("tune", "all") == "all":
        return []
    detail = "It needs tune = all: the frozen part of a network sees every image once, as it is."
    return [Fault(f"/{name}", "excluded", detail) for name in pixel_changes(resolved)]


def pixel_changes(fields: Mapping[str, Any]) -> list[str]:
    """The fields of a training that change pixels in a way that the features of a frozen part cannot follow."""
    changes = {
        "augmentation": fields.get("augmentation") == "resized_crop_flip",
        "randaugment": fields.get("randaugment", 0) > 0,
        "color_jitter": fields.get("color_jitter", 0.0) > 0,
    }
    return [name for name, changed in changes.items() if changed]
