"""Opens exports of models, and checks them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from ml import errors
from ml.networks import chain
from ml.serving import model_archive, predictor
from ml.serving.export_manifest import FORMAT, MANIFEST, README, WEIGHTS, ExportManifest
from ml.serving.predictor import Predictor

STAGES = "input.encoder.stages."  # prefix of a frozen backbone in the method's state
DRAWN_SQUARES = 4  # by which arithmetic is checked where there are no images
MAX_MANIFEST_BYTES = 64 << 20


def read_manifest(export: Path) -> ExportManifest:
    """The manifest of an export, which is a zip or the folder it was extracted to; ModelArchiveCorrupt."""
    return _read(export)[0]


def load(export: Path, device: str = "auto", precision: str = "f32") -> Predictor:
    """Open an export.

    Args:
        export: The zip, or the folder it was extracted to.
        device: As of `Predictor.load`.
        precision: "f32", "bf16" or "auto"; bf16 is used if it predicts the same class for a few drawn squares.

    Raises:
        ModelArchiveCorrupt: Something is missing, damaged, or of a version that this one does not read.
    """
    manifest, files = _read(export)
    return assemble(manifest, files, device, precision)


def open_model(path: Path, device: str = "auto") -> Predictor:
    """Open an export, or the folder of a model archive; ModelArchiveCorrupt."""
    is_export = path.is_file() or (path / README).is_file()
    return load(path, device) if is_export else Predictor.load(path, device)


def _read(export: Path) -> tuple[ExportManifest, dict[str, bytes]]:
    """Manifest and verified files of an export."""
    try:
        if export.is_dir():
            manifest = _parse((export / MANIFEST).read_bytes())
            files = {file: (export / file).read_bytes() for file in _plain_names(manifest)}
        else:
            with zipfile.ZipFile(export) as opened:
                if opened.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
                    raise errors.ModelArchiveCorrupt("the export's manifest is too large")
                manifest = _parse(opened.read(MANIFEST))
                sizes = {file: opened.getinfo(file).file_size for file in _plain_names(manifest)}
                if sizes != {file: facts.bytes for file, facts in manifest.files.items()}:
                    raise errors.ModelArchiveCorrupt("the export's files do not match its manifest")
                files = {file: opened.read(file) for file in sizes}
    except (OSError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValidationError) as error:
        raise errors.ModelArchiveCorrupt(f"{export.name} is no readable export of a model") from error
    if any(hashlib.sha256(files[file]).hexdigest() != facts.sha256 for file, facts in manifest.files.items()):
        raise errors.ModelArchiveCorrupt("the export's files do not match its manifest")
    return manifest, files


def _parse(text: bytes) -> ExportManifest:
    manifest = ExportManifest.model_validate_json(text)
    if manifest.version != FORMAT:
        raise errors.ModelArchiveCorrupt(f"this export has version {manifest.version}, and not {FORMAT}")
    return manifest


def _plain_names(manifest: ExportManifest) -> list[str]:
    """The files that a manifest lists; ModelArchiveCorrupt if one is a path."""
    if any(Path(file).name != file for file in manifest.files):
        raise errors.ModelArchiveCorrupt("the export's manifest names a file outside of it")
    return list(manifest.files)


def assemble(manifest: ExportManifest, files: Mapping[str, bytes], device: str, precision: str) -> Predictor:
    """A predictor of an export's files."""
    archive = model_archive.Manifest(
        format=manifest.archive_format,
        digest=manifest.digest,
        files={},
        spec=manifest.spec,
        classes=manifest.classes,
        mean=manifest.input.mean,
        std=manifest.input.std,
        label_count=manifest.label_count,
        metrics=manifest.metrics,
    )
    names, state = published_names(archive), dict[str, Tensor]()
    try:
        for file, network in manifest.weights.items():
            tensors = load_tensors(files[file])
            state |= {network.at + own: tensors[published] for own, published in names.network.items()}
            if file == WEIGHTS:
                state |= {STAGES + own: tensors[published] for own, published in names.stages.items()}
        if manifest.localization is not None:
            part = load_tensors(files[manifest.localization.file])
            state |= {manifest.localization.at + own: tensor for own, tensor in part.items()}
        if manifest.rest is not None:
            state |= load_tensors(files[manifest.rest])
    except (KeyError, SafetensorError) as error:
        raise errors.ModelArchiveCorrupt("the export's weights are not those that its manifest names") from error
    return Predictor.assemble(
        archive,
        state,
        drawn_squares(manifest.input.image_size),
        device=device,
        precision=precision,
        left_out=manifest.left_out,
        trusts_activation=manifest.maps_use_activation,
    )


def drawn_squares(side: int) -> Tensor:
    """Colour waves uint8 (n, side, side, 3), the same every time: they stand for images where there are none."""
    across = torch.linspace(0.0, 1.0, side)
    waves = [
        torch.sin(6.3 * (k + 1) * across)[None, :, None] + torch.cos(6.3 * (k + channel) * across)[:, None, None]
        for k in range(DRAWN_SQUARES)
        for channel in range(3)
    ]
    squares = torch.cat(waves, dim=2).view(side, side, DRAWN_SQUARES, 3).permute(2, 0, 1, 3)
    return ((squares / 4 + 0.5).clamp(0, 1) * 255).to(torch.uint8).contiguous()


class PublishedNames(NamedTuple):
    """Names in the state of a model's parts -> names of the published architecture."""

    stages: dict[str, str]  # of the frozen part
    network: dict[str, str]  # of the network that is trained


def published_names(manifest: model_archive.Manifest) -> PublishedNames:
    """Those of a model archive's network."""
    with torch.random.fork_rng(devices=[]):
        whole = predictor.whole_network(manifest)
    published = whole.published_names
    if manifest.spec.tune == "all":
        return PublishedNames({}, {name: published.get(name, name) for name in whole.state_dict()})
    names = {key: published.get(name, name) for key, name in chain.names_of(whole).items()}
    frozen, trained = chain.cut(whole, manifest.spec.tune)
    return PublishedNames(
        *({own: names[identity] for identity, own in chain.names_of(part).items()} for part in (frozen, trained))
    )
