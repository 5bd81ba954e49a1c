"""Whether the fields of a training spec agree with each other and with the method, which a schema cannot express."""

from __future__ import annotations

from ml import errors, methods
from ml.training.spec import TrainingSpec


def check(spec: TrainingSpec) -> None:
    """Raise ContradictorySpec if two settings exclude each other, or UnknownName if there is no such method."""
    if spec.mixup and methods.mixes(spec.method, spec.params):
        raise errors.ContradictorySpec(f"{spec.method} mixes images itself", hint="set mixup to 0")
    if spec.pretrained and spec.tune != "all" and (names := _pixel_augmentations(spec)):
        raise errors.ContradictorySpec(
            f"the frozen part of {spec.network} sees every image once, so {' and '.join(names)} cannot vary it",
            hint="set tune to all, or leave them out",
        )


def _pixel_augmentations(spec: TrainingSpec) -> list[str]:
    """The fields that change pixels in a way that features cannot follow."""
    changes = {
        "augmentation": spec.augmentation == "resized_crop_flip",
        "randaugment": spec.randaugment > 0,
        "color_jitter": spec.color_jitter > 0,
    }
    return [name for name, changed in changes.items() if changed]
