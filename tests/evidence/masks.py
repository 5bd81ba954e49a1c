"""Where the masks behind a pretrained backbone point, on boxes and masks that no training sees.

    python -m ml weights add efficientnet_lite0
    python -m tests.evidence.masks SETS [--only SET ...]

A probe of the frozen backbone is trained on each set's noisy labels. COCO is looked at by imagenette's probe, whose
classes it does not have. Measured are the centre, the border contrast, the class activation of the predicted class, the
product of both, and the mask that the predictor gives: `ml.features.picture_mask` chooses it by the correlation of both
maps on 32 pictures of the training, and for each picture. The measures are those of `tests.benchmarks.localization`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ml import commands
from ml.data.image_store import ImageStore
from ml.evaluation import attention
from ml.features import picture_mask
from ml.features.method_input import PictureMethod
from ml.features.picture_mask import PictureMaps
from ml.method import ENSEMBLE
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.benchmarks._localization import sets
from tests.benchmarks._localization.sets import Located, Set
from tests.benchmarks.localization import centred, measured

SIDE = 224
TRAINED, CHECKED, BATCH = 1500, 32, 32  # images of the probe, of the model's correlation, and of a pass
READERS = {"imagenette": sets.imagenette, "neu_steel": sets.neu_steel, "magnetic_tile": sets.magnetic_tile}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.evidence.masks", description=__doc__)
    parser.add_argument("folder", type=Path, help="where imagenette/, coco_things/, ... are")
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--trained", type=int, default=TRAINED, help="images of the probe")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        known = READERS[name](options.folder / name, SIDE, options.trained)
        looked_at = {name: known.located}
        if name == "imagenette":
            looked_at["coco_things"] = sets.coco_things(options.folder / "coco_things", SIDE)
        trainer = probe(known)
        trusted = picture_mask.trusts_activation(maps_of(trainer, trainer.batches.sample(CHECKED)))
        for of, located in looked_at.items():
            print_masks(of, located, maps_of(trainer, located.pictures), trusted=trusted)


def probe(known: Set) -> Trainer:
    """A probe of a set's noisy labels."""
    spec = TrainingSpec(
        method="probe", network="efficientnet_lite0", pretrained=True, tune="none", image_size=SIDE, epochs=1,
        validation_fraction=0.0,
    )  # fmt: skip
    weights = commands.data_folder() / commands.WEIGHTS
    trainer = Trainer.build(spec, known.trained, device="cpu", threads=1, weights=weights)
    for _ in trainer:
        pass
    return trainer


def maps_of(trainer: Trainer, pictures: Tensor) -> PictureMaps:
    """Both maps of pictures uint8 (T, S, S, 3), of the predicted classes."""
    method = trainer.picture_method().eval()
    assert isinstance(method, PictureMethod)
    store = ImageStore(pictures, trainer.mean, trainer.std, device=torch.device("cpu"))
    parts = []
    for rows in torch.split(torch.arange(len(pictures)), BATCH):
        batch = store.unaugmented(rows)
        with torch.no_grad():
            logits, rendered = method.render_and_predict(batch)
            maps = picture_mask.compute_maps(method, rendered.encoded, logits[ENSEMBLE].argmax(dim=1))
        assert maps is not None
        parts.append(maps)
    activations = [maps.activation for maps in parts if maps.activation is not None]
    return PictureMaps(torch.cat([maps.contrast for maps in parts]), torch.cat(activations))


def print_masks(name: str, located: Located, maps: PictureMaps, *, trusted: bool) -> None:
    """The table of one set."""
    assert maps.activation is not None
    objects = located.objects
    correlation = float(attention.correlation(maps.contrast, maps.activation).mean())
    print(
        f"{name}: {len(objects)} pictures, chance {float(objects.float().mean()):.3f}, "
        f"correlation {correlation:.2f}, activation {'trusted' if trusted else 'not trusted'} by the training"
    )
    masks = {
        "centre prior": centred(len(objects), SIDE),
        "border contrast": maps.contrast,
        "class activation": maps.activation,
        "product": maps.contrast * maps.activation,
        "the predictor's mask": picture_mask.mask(maps, with_activation=trusted),
    }
    for kind, mask in masks.items():
        values = measured(mask / mask.amax(dim=(2, 3), keepdim=True), objects)
        print(f"  {kind:22} " + "  ".join(f"{key} {value:.3f}" for key, value in values.items()), flush=True)


if __name__ == "__main__":
    main()
