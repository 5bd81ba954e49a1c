"""Which settings of a training exclude each other; the service refuses by the same rules as `ml`.

Settings are those of `ml.training.spec.TrainingSpec`, as JSON values by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Contradiction(NamedTuple):
    """Settings that exclude each other."""

    field: str  # the one to change, or `params/NAME` of the method
    code: str  # in snake_case
    detail: str  # a sentence


def pixel_changes(settings: Mapping[str, Any]) -> list[str]:
    """The settings that change pixels in a way that the features of a frozen part cannot follow."""
    changes = {
        "augmentation": settings.get("augmentation") == "resized_crop_flip",
        "randaugment": settings.get("randaugment", 0) > 0,
        "color_jitter": settings.get("color_jitter", 0.0) > 0,
    }
    return [name for name, changed in changes.items() if changed]


def find_contradictions(
    settings: Mapping[str, Any], frozen_backbone: Mapping[str, object], *, mixes: bool
) -> list[Contradiction]:
    """Everything that is wrong with the settings together.

    Args:
        settings: Complete.
        frozen_backbone: Params of the method that need pretrained weights, and without which no part of the network
            can be frozen.
        mixes: Whether the method, or its base method, mixes images itself.
    """
    wrong = []
    is_frozen = bool(settings["pretrained"]) and settings["tune"] != "all"
    if not settings["pretrained"]:
        if settings["tune"] != "all":
            wrong.append(Contradiction("tune", "needs_pretrained", "What is not tuned must be pretrained."))
        if settings["first_answer"]:
            detail = "A first answer is read from pretrained features."
            wrong.append(Contradiction("first_answer", "needs_pretrained", detail))
        if settings["batch_norm"] == "pretrained":
            detail = "Statistics of batch normalisation come with pretrained weights."
            wrong.append(Contradiction("batch_norm", "needs_pretrained", detail))
    if settings["mixup"] and mixes:
        detail = f"It must be 0: {settings['method']} or its base method mixes images already."
        wrong.append(Contradiction("mixup", "excluded", detail))
    if is_frozen:
        detail = "It needs tune = all: the frozen part of a network sees every image once, as it is."
        wrong += [Contradiction(name, "excluded", detail) for name in pixel_changes(settings)]
    for name, value in frozen_backbone.items():
        has_value = settings["params"].get(name) == value
        if is_frozen and not has_value:
            detail = f"It must be {value} where a part of the network is frozen."
            wrong.append(Contradiction(f"params/{name}", "needs_frozen_backbone", detail))
        elif has_value and not settings["pretrained"]:
            wrong.append(Contradiction(f"params/{name}", "needs_pretrained", f"{value} needs pretrained weights."))
    return wrong
