"""The README of an export: how a person opens it, with public libraries alone too."""

from __future__ import annotations

import io

from ml.method import ENSEMBLE
from ml.serving.export_manifest import MANIFEST, WEIGHTS, ExportManifest, NetworkFile


def readme(manifest: ExportManifest) -> str:
    """How to open the export, for a person."""
    first = manifest.weights[WEIGHTS]
    out = io.StringIO()
    title = manifest.name or f"{manifest.method} on {manifest.network}"
    out.write(f"# {title}\n\n")
    out.write(
        f"An image classifier of {len(manifest.classes)} classes, trained by `{manifest.method}`; network "
        f"`{manifest.network}`, images of {manifest.input.image_size} px. `manifest.json` has classes, normalisation, "
        "measures, and the size and SHA-256 of every file.\n\n## The complete model\n\n"
        "```bash\npython -m ml predict model.zip photo.jpg\n```\n\n"
        "or, in Python, `ml.serving.export_reader.load(path)`, which takes the zip or this folder.\n"
    )
    if manifest.public_library is not None:
        out.write(f"\n## {WEIGHTS} with {manifest.public_library.name} alone\n\n")
        out.write(_said_of(first))
        out.write(f"```python\n{python_code(manifest)}```\n")
    out.write("\n## Files\n\n")
    for file, network in manifest.weights.items():
        head = f", which predicts the model's `{network.head}`" if network.head else ""
        out.write(f"- `{file}`: a network{head}\n")
    if manifest.localization is not None:
        out.write(f"- `{manifest.localization.file}`: the localization module, which predicts the Gaussian mask\n")
    if manifest.rest is not None:
        out.write(f"- `{manifest.rest}`: what the method reads besides when it predicts\n")
    if manifest.backbone is not None:
        source, licence = (manifest.backbone.source or "unknown", manifest.backbone.licence or "unknown")
        out.write(
            f"\n## Licence\n\nTraining started from the weights of `{manifest.backbone.name}`. Source: {source}. "
            f"Licence: {licence}. The weights here are derived from them.\n"
        )
    return out.getvalue()


def _said_of(first: NetworkFile) -> str:
    if first.difference is None or first.head == ENSEMBLE:
        return "The network predicts as the complete model does.\n\n"
    return (
        f"The model combines several predictions; this network by itself chose the same class for "
        f"{first.difference.same_class:.0%} of {first.difference.images} images.\n\n"
    )


def python_code(manifest: ExportManifest) -> str:
    """Lines that predict `photo.jpg` in the extracted folder with public libraries; ends with `probabilities`."""
    assert manifest.public_library is not None
    box = ""
    crop: tuple[str, ...] = ()
    if manifest.input.resize == "crop":
        crop = (
            "side, (width, height) = min(image.size), image.size",
            "left, top = (width - side) / 2, (height - side) / 2",
        )
        box = ", box=(left, top, left + side, top + side)"
    lines = (
        "import json",
        "import numpy as np",
        "import torch",
        *manifest.public_library.code[:1],
        "from PIL import Image, ImageOps",
        "from safetensors.torch import load_file",
        "",
        *manifest.public_library.code[1:],
        f'model.load_state_dict(load_file("{WEIGHTS}"))',
        "model.eval()",
        "",
        f'manifest = json.load(open("{MANIFEST}"))',
        'size, mean, std = (manifest["input"][key] for key in ("image_size", "mean", "std"))',
        'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")',
        *crop,
        f"image = image.resize((size, size), Image.Resampling.BILINEAR{box})",
        "pixels = (np.asarray(image) / 255 - mean) / std",
        "with torch.no_grad():",
        "    logits = model(torch.from_numpy(pixels).permute(2, 0, 1).float()[None])[0]",
        'probabilities = dict(zip(manifest["classes"], logits.softmax(dim=0).tolist()))',
    )
    return "\n".join(lines) + "\n"
