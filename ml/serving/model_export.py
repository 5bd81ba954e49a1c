"""Exports: a published model as one zip for use outside the service. No image of the training set, no training state.

An export holds what predicting reads: `weights.safetensors` with the names of the published architecture (torchvision's
`load_state_dict` takes it), more such files where the method predicts with several networks, the localization module's
weights apart, the rest in `method.safetensors`, `manifest.json` that explains all of it, and a README. Its manifest
records how far each way of opening it is from the published model. The service's own `ml.serving.model_archive` holds
more: the whole state of the method, and images by which a predictor checks its arithmetic.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ml import errors
from ml.blocks.background import ClassBackgroundAverage
from ml.blocks.localization import LocalizationModule
from ml.formats import fsync
from ml.formats.weights_folder import WeightsRecord
from ml.method import ENSEMBLE
from ml.networks import chain, plain
from ml.serving import export_reader, export_readme, model_archive, predictor
from ml.serving.export_manifest import (
    LOCALIZATION,
    MANIFEST,
    README,
    REST,
    WEIGHTS,
    Backbone,
    Difference,
    ExportManifest,
    Input,
    Library,
    NetworkFile,
    PartFile,
)
from ml.serving.export_reader import STAGES, PublishedNames
from ml.serving.model_archive import FileFacts
from ml.serving.predictor import Predictor
from ml.training.spec import TrainingSpec

DATE = (1980, 1, 1, 0, 0, 0)  # of every entry: the same model makes the same bytes
TOLERANCE = 1e-3  # most that a probability may differ when the export is opened again
MAPPED_SQUARES = 4  # whose maps are computed too, to see what is read


def write(
    archive: Path, target: Path, *, name: str | None = None, backbone: WeightsRecord | None = None
) -> ExportManifest:
    """Write the export of a published model.

    Args:
        archive: The model archive's folder.
        target: The zip; replaced if it exists, complete or not at all.
        name: What the manifest calls the model.
        backbone: The record of the pretrained weights that training started from, where it is still known.

    Returns:
        Its manifest, in which `reopened` says how far it is from the model when it is opened again.

    Raises:
        ModelArchiveCorrupt: The archive does not verify, or the export predicts otherwise.
        OSError: It could not be written.
    """
    manifest, _, check = model_archive.read(archive)
    original = Predictor.load(archive, device="cpu", precision="f32")
    squares = list(check.numpy())
    answers = original.predict_squares(squares)
    facts, files = _parts(manifest, original, squares, answers)
    described = ExportManifest(
        name=name,
        digest=manifest.digest,
        method=manifest.spec.method,
        network=manifest.spec.network,
        classes=manifest.classes,
        input=Input(
            image_size=manifest.spec.image_size, resize=manifest.spec.resize, mean=manifest.mean, std=manifest.std
        ),
        backbone=_backbone(manifest.spec, backbone),
        maps_use_activation=original.trusts_activation,
        reopened=None,
        archive_format=manifest.format,
        label_count=manifest.label_count,
        spec=manifest.spec,
        metrics=manifest.metrics,
        **facts,
    )
    files[README] = export_readme.readme(described).encode()
    listed = {file: FileFacts(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for file, data in files.items()}
    described = described.model_copy(update={"files": listed})

    # opened again before it is written, and once more by whoever reads the file: the digests are in the manifest
    reopened = export_reader.assemble(described, files, "cpu", "f32").predict_squares(squares)
    difference = _difference([one.probabilities for one in reopened], [one.probabilities for one in answers])
    if difference.largest > TOLERANCE:
        raise errors.ModelArchiveCorrupt(f"the export's probabilities differ by {difference.largest:.2g}")
    described = described.model_copy(update={"reopened": difference})
    _write_zip(target, {MANIFEST: _to_json(described), **files})
    return described


# --- what an export holds ---


class _ReadStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base has no types
    """Records the storages of the tensors that operations read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pointers: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                self.pointers.add(value.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))


def _parts(
    manifest: model_archive.Manifest,
    original: Predictor,
    squares: Sequence[NDArray[np.uint8]],
    answers: Sequence[predictor.Prediction],
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Fields of the export's manifest that say what lies where, and the files by name, without the README."""
    method = original.trained_method
    state = {key: tensor.detach() for key, tensor in method.state_dict().items()}
    read = _keys_read(original, state, squares)
    names = export_reader.published_names(manifest)
    stages = {key: state[STAGES + key] for key in names.stages}
    stored = {STAGES + key for key in names.stages}  # keys of the state that are in a file

    # networks, the one whose own prediction is nearest to the model's first
    pictures = original.normalized(torch.from_numpy(np.stack(squares)))
    networks: list[tuple[NetworkFile, dict[str, Tensor], Tensor | None]] = []
    for prefix in _prefixes(method, chain.Chain):
        own = {key: state[prefix + key] for key in names.network}
        if read.isdisjoint(prefix + key for key in own):
            continue
        stored |= {prefix + key for key in own}
        tensors = _by_published_name(names, stages, own)
        logits = _logits(manifest, tensors, pictures)
        networks.append((_network_file(prefix, logits, answers), tensors, logits))
    networks.sort(key=lambda one: (1.0, 0.0) if (d := one[0].difference) is None else (-d.same_class, d.largest))
    files = {
        WEIGHTS if i == 0 else f"weights-{i + 1}.safetensors": tensors for i, (_, tensors, _) in enumerate(networks)
    }
    weights = {file: network for file, (network, *_) in zip(files, networks, strict=True)}

    # the localization module apart
    localization: PartFile | None = None
    modules = {prefix: _below(prefix, state) for prefix in _prefixes(method, LocalizationModule)}
    used = [prefix for prefix, keys in modules.items() if not read.isdisjoint(keys)]
    if len(used) == 1:
        localization = PartFile(file=LOCALIZATION, at=used[0])
        files[LOCALIZATION] = {key.removeprefix(used[0]): state[key] for key in modules[used[0]]}
        stored |= set(modules[used[0]])

    # the rest; of averages by class only their mean, which is all that networks see
    for prefix in _prefixes(method, ClassBackgroundAverage):
        averages = method.get_submodule(prefix.removesuffix("."))
        assert isinstance(averages, ClassBackgroundAverage)
        state[prefix + "averages"] = averages.mean().expand_as(averages.averages)
    if rest := {key: state[key] for key in state if key in read and key not in stored}:
        files[REST] = rest
    facts = {
        "public_library": _public_library(manifest, files[WEIGHTS], pictures, networks[0][2]),
        "weights": weights,
        "localization": localization,
        "rest": REST if rest else None,
        "left_out": tuple(sorted(state.keys() - stored - rest.keys())),
        "files": {},
    }
    return facts, {file: save_tensors(_owned(tensors)) for file, tensors in files.items()}


def _keys_read(original: Predictor, state: Mapping[str, Tensor], squares: Sequence[NDArray[np.uint8]]) -> set[str]:
    """The keys of the method's state whose tensors predicting reads, and of those that have no elements."""
    with _ReadStorages() as reading:
        original.predict_squares(squares[:MAPPED_SQUARES], maps=True)
    read = {
        key
        for key, tensor in state.items()
        if tensor.numel() == 0 or tensor.untyped_storage().data_ptr() in reading.pointers
    }
    return read | set(_below(STAGES, state))  # a faster copy of the backbone was read in their place


def _below(prefix: str, state: Mapping[str, Tensor]) -> list[str]:
    return [key for key in state if key.startswith(prefix)]


def _prefixes(method: nn.Module, kind: type[nn.Module]) -> list[str]:
    """Where modules of a kind are in the method's state, each as `name.`; those inside of another one are left out."""
    prefixes: list[str] = []
    for path, module in method.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, kind) and not any(prefix.startswith(outer) for outer in prefixes):
            prefixes.append(prefix)
    return prefixes


def _by_published_name(
    names: PublishedNames, stages: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {names.stages[key]: tensor for key, tensor in stages.items()} | {
        names.network[key]: tensor for key, tensor in own.items()
    }


def _network_file(at: str, logits: Tensor | None, answers: Sequence[predictor.Prediction]) -> NetworkFile:
    """What a network predicts by itself, which of the model's heads that is, and how far it is from the answer.

    Args:
        at: The network's prefix in the method's state.
        logits: Its own (n, C); None where it does not read plain images.
        answers: Of the model, for the same images.
    """
    if logits is None:
        return NetworkFile(at=at, head=None, difference=None)
    alone = list(logits.softmax(dim=1).numpy())
    differences = {head: _difference(alone, [answer.heads[head] for answer in answers]) for head in answers[0].heads}
    nearest = min(differences, key=lambda head: differences[head].largest)
    head = nearest if differences[nearest].largest <= TOLERANCE else None
    return NetworkFile(at=at, head=head, difference=differences[ENSEMBLE])


@torch.no_grad()
def _logits(manifest: model_archive.Manifest, tensors: Mapping[str, Tensor], pictures: Tensor) -> Tensor | None:
    """Logits (n, C) of our network with these published weights; None where it reads more than plain images."""
    with torch.random.fork_rng(devices=[]):
        network = predictor.whole_network(manifest).eval()
    own = {key: tensors[network.published_names.get(key, key)] for key in network.state_dict()}
    if any(own[key].shape != tensor.shape for key, tensor in network.state_dict().items()):
        return None
    network.load_state_dict(own)
    logits: Tensor = network(pictures)
    return logits


@torch.no_grad()
def _public_library(
    manifest: model_archive.Manifest, tensors: Mapping[str, Tensor], pictures: Tensor, expected: Tensor | None
) -> Library | None:
    """How a public library opens the weights; None where it does not, or computes something else.

    Args:
        manifest: Of the model.
        tensors: Weights by their published names.
        pictures: Normalised (n, 3, S, S).
        expected: Logits (n, C) of our network for them; None where it does not read plain images.
    """
    spec = manifest.spec
    if expected is None:
        return None
    published_stem = spec.pretrained and manifest.format > 1
    with torch.random.fork_rng(devices=[]):
        built = plain.build(spec.network, len(manifest.classes), spec.image_size, published_stem=published_stem)
    if built is None or built.model.state_dict().keys() != tensors.keys():
        return None
    try:
        built.model.eval().load_state_dict(dict(tensors))
    except (RuntimeError, ValueError):  # other shapes; or MNASNet, which refuses tensors without its own metadata
        return None
    logits: Tensor = built.model(pictures)
    largest = float((logits.softmax(dim=1) - expected.softmax(dim=1)).abs().max())
    if largest > TOLERANCE:
        return None
    return Library(name=built.package, code=built.code, largest_difference=largest)


def _difference(own: Sequence[NDArray[np.float32]], model: Sequence[NDArray[np.float32]]) -> Difference:
    one, two = np.stack(own), np.stack(model)
    return Difference(
        images=len(one),
        largest=float(np.abs(one - two).max()),
        same_class=float((one.argmax(axis=1) == two.argmax(axis=1)).mean()),
    )


def _backbone(spec: TrainingSpec, record: WeightsRecord | None) -> Backbone | None:
    if not spec.pretrained:
        return None
    source, licence = (None, None) if record is None else (record.source, record.licence)
    return Backbone(name=spec.network, source=source, licence=licence)


# --- files ---


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}


def _to_json(manifest: ExportManifest) -> bytes:
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _write_zip(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a zip without compression, since weights do not shrink; the bytes depend on nothing but the files."""
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as opened:
            for file, data in files.items():
                entry = zipfile.ZipInfo(file, DATE)
                entry.external_attr = 0o644 << 16
                with opened.open(entry, "w", force_zip64=len(data) > 1 << 31) as out:
                    out.write(data)
        fsync.flush(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    fsync.flush(target.parent)
