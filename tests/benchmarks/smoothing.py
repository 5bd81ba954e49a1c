"""How far the map of what stands out is smoothed: chosen on some sets, told of others.

    python -m tests.benchmarks.smoothing FOLDER
        FOLDER: where neu_steel/, magnetic_tile/, imagenette/ and coco_things/ are

Pointing accuracy of the map at each share of the side, of the networks that `tests.benchmarks.localization` trains. The
share with the best mean over CHOOSING (drawn scenes, steel, tiles; both trainings) is the choice; photographs only
test it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ml.blocks import attention
from ml.figures.viewing import Viewer
from ml.training import Training
from tests.benchmarks import localization
from tests.benchmarks._localization import sets
from tests.benchmarks._localization.sets import Located

SHARES = (1 / 48, 1 / 24, 1 / 12, 1 / 8, 1 / 6, 1 / 4)
CHOOSING = ("scenes", "neu_steel", "magnetic_tile")


def pointing(training: Training, located: Located) -> torch.Tensor:
    """Of the map at each share, (SHARES,)."""
    viewer = Viewer(training.method, training.mean, training.std, training.device)
    images = viewer.images(located.pictures)
    found = []
    for share in SHARES:

        def contrast(shown: torch.Tensor, share: float = share) -> torch.Tensor:
            with attention.overheard(training.method) as passes:
                training.method.logits(shown)
            made = attention.border_contrast(passes, share)
            assert made is not None
            return made

        found.append(localization.measured(viewer.each(images, contrast), located.objects)["pointing"])
    return torch.tensor(found)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    made = {
        "scenes": sets.drawn_scenes,
        "neu_steel": lambda: sets.neu_steel(folder / "neu_steel"),
        "magnetic_tile": lambda: sets.magnetic_tile(folder / "magnetic_tile"),
        "imagenette": lambda: sets.imagenette(folder / "imagenette"),
    }
    print("| pointing, % |", " | ".join(f"1/{round(1 / share)}" for share in SHARES), "|", flush=True)
    rows = {}
    for name, load in made.items():
        known = load()
        shown = {name: known.located}
        if name == "imagenette":
            shown["coco_things"] = sets.coco_things(folder / "coco_things")
        for method, training in zip(("plain", "denll"), localization.pair(name, known.trained), strict=True):
            for where, located in shown.items():
                rows[where, method] = pointing(training, located)
                print(
                    f"| {where}, {method} |", " | ".join(f"{100 * p:.1f}" for p in rows[where, method]), "|", flush=True
                )
    mean = torch.stack([row for (where, _), row in rows.items() if where in CHOOSING]).mean(dim=0)
    print("| mean of", ", ".join(CHOOSING), "|", " | ".join(f"{100 * p:.1f}" for p in mean), "|")
    print(f"chosen: 1/{round(1 / SHARES[int(mean.argmax())])} of the side")


if __name__ == "__main__":
    main()
