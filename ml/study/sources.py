"""The pictures of a run: a user's folder or zip, a data set of the service, or scenes, drawn or put together from
photographs; and which of them it sees.

Pictures are read once in a process and kept. Everything drawn is drawn by the run's seed.

Shapes: `N` images, `S` side; images uint8 (N, S, S, 3), labels int64 (N,).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ml import errors, fsync
from ml.data import container_dataset, dataset, published
from ml.data.dataset import UNKNOWN, LabeledImages, Truth
from ml.data.decoding import Resize
from ml.formats import dataset_index
from ml.formats.archive import is_description, read_archive
from ml.formats.entries import UNLIMITED
from ml.formats.errors import DatasetFormatError
from ml.formats.table_columns import ColumnNames
from ml.scenes import generate
from ml.scenes.drawn import Grounds, Plates
from ml.scenes.photographs import CutOuts, Places
from ml.study.plan import DataSet, Run
from ml.training.spec import TrainingSpec, seed_for

CLEAN_COLUMN = "clean"  # of a table in a study: the column of true labels, where it is there
PROBE = 12  # scenes drawn to tell one generator from another


class DataPaths(NamedTuple):
    """Where a run's pictures lie, or the photographs of which its scenes are made; nowhere, where all is drawn."""

    folder: Path | None = None
    objects: Path | None = None
    places: Path | None = None


@dataclass(frozen=True)
class Material:
    """What one run learns from and is measured by."""

    images: LabeledImages
    truth: Truth
    beside: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # more test sets: images and labels
    middles: Tensor | None = None  # of the objects in the test images: x, y (T, 2) in pixels, NaN where none shows


def location(name: str, source: DataSet, folder: Path, given: Mapping[str, Path]) -> DataPaths:
    """Where the pictures of the data set `name` lie; UnusableData if nobody said, or nothing is there."""
    if source.source == "scenes":
        kinds = {"objects": source.objects, "places": source.places}
        return DataPaths(**{kind: _there(of, given.get(of)) for kind, of in kinds.items() if of is not None})
    own = None if source.path is None else folder / source.path
    return DataPaths(folder=_there(name, given.get(name, own)))


def _there(name: str, path: Path | None) -> Path:
    if path is None:
        raise errors.UnusableData(f"where is the data set {name!r}?", hint=f"--data {name}=PATH", code="no_data")
    if not path.exists():
        raise errors.UnusableData(f"data set {name!r}: {path} does not exist", code="no_data")
    return path


@functools.cache
def fingerprint(at: DataPaths, draw: str = "{}") -> str:
    """What tells one data set from another without decoding it: names, sizes and labels; of scenes, what is drawn.

    Photographs that scenes are made of are told by their bytes: they are few.
    """
    digest = hashlib.sha256()
    if at.folder is None:
        for photographs in filter(None, (at.objects, at.places)):
            for file in _files(photographs):
                held = fsync.fingerprint(file).sha256
                digest.update(repr((file.relative_to(photographs).as_posix(), held)).encode())
        objects, places = _stage(at)
        few = generate.draw(PROBE, seed=0, objects=objects, places=places, **json.loads(draw))
        for each in (few.images, few.clean, few.given):
            digest.update(each.tobytes())
    elif dataset_index.is_ready(at.folder):
        digest.update(repr(dataset_index.read_facts(at.folder)["digest"]).encode())
    elif at.folder.is_dir():
        for file in _files(at.folder):
            digest.update(repr((file.relative_to(at.folder).as_posix(), file.stat().st_size)).encode())
            if file.name in published.LABEL_FILES:  # other labels in them take as many bytes
                digest.update(fsync.fingerprint(file).sha256.encode())
        tables = sorted(at.folder.glob("*.csv"))
        others = [file for file in _files(at.folder) if is_description(file.name) and file not in tables]
        for table in (*tables, *others):
            digest.update(table.read_bytes())
    else:
        _digest_archive(digest, at.folder)
    return digest.hexdigest()


def _digest_archive(digest: hashlib._Hash, path: Path) -> None:
    """Names, sizes and CRCs of a zip; a tar states no CRC, so all of its bytes."""
    try:
        entries = read_archive(path, UNLIMITED).entries
    except DatasetFormatError as error:
        raise errors.UnusableData.from_format_error(error, path) from error
    for entry in entries:
        digest.update(repr((entry.path, entry.image_bytes, entry.crc)).encode())
    if any(entry.crc is None for entry in entries):
        digest.update(fsync.fingerprint(path).sha256.encode())


def _files(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.is_file())


def load(run: Run, at: DataPaths) -> Material:
    """The pictures of a run."""
    if at.folder is None:
        return _scenes(run, at)
    spec, source = run.spec, run.source
    wanted = (source.label_column,) if isinstance(source.label_column, str) else source.label_column or (None,)
    images, truth = _read(at.folder, spec.image_size, spec.resize, tuple(wanted))
    if truth.test_images is None and source.test_share > 0:
        images, truth = _with_test(images, truth, source.test_share, spec.seed)
    return _limited(images, truth, source, spec)


@functools.lru_cache(maxsize=4)
def _read(path: Path, image_size: int, resize: Resize, columns: tuple[str | None, ...]) -> tuple[LabeledImages, Truth]:
    if dataset_index.is_ready(path):  # its labels were chosen when it was uploaded
        return dataset.load(path, image_size=image_size, resize=resize)
    choices = [ColumnNames(label=label, clean=clean) for label in columns for clean in (CLEAN_COLUMN, None)]
    loaded = container_dataset.load_container(path, image_size=image_size, resize=resize, columns=choices)
    return loaded.images, loaded.truth


@functools.lru_cache(maxsize=4)
def _stage(at: DataPaths) -> tuple[generate.Objects, generate.Places]:
    """What scenes are made of; drawn, where no photographs are given."""
    objects: generate.Objects = Plates() if at.objects is None else CutOuts.read(at.objects)
    places: generate.Places = Grounds() if at.places is None else Places.read(at.places)
    return objects, places


def _scenes(run: Run, at: DataPaths) -> Material:
    source, side, seed = run.source, run.spec.image_size, run.spec.seed
    settings = source.draw
    plain = {name: value for name, value in settings.items() if name not in ("noise", "noise_rate", "own_scene")}
    objects, places = _stage(at)
    (seen, unseen), (around, beyond) = objects.parted(generate.HELD_OUT), places.parted(generate.HELD_OUT)
    of_train, of_test = seed_for(seed, "scenes"), seed_for(seed, "scenes to test on")
    train = generate.draw(source.train or 1500, seed=of_train, image_size=side, objects=seen, places=around, **settings)
    tested = functools.partial(
        generate.draw, source.test or 600, image_size=side, objects=unseen, places=beyond, **plain
    )
    test, beside = tested(seed=of_test), {}
    if source.swapped:
        swapped = tested(seed=of_test + 1, swapped=True)
        beside["swapped"] = (torch.from_numpy(swapped.images), torch.from_numpy(swapped.clean))
    images = LabeledImages(torch.from_numpy(train.images), torch.from_numpy(train.given), seen.classes)
    truth = Truth(torch.from_numpy(train.clean), torch.from_numpy(test.images), torch.from_numpy(test.clean))
    return Material(images, truth, beside, torch.from_numpy(generate.middles(test.masks)))


def _with_test(images: LabeledImages, truth: Truth, share: float, seed: int) -> tuple[LabeledImages, Truth]:
    """Some images set aside to test on; by their clean labels where they are known."""
    kept, aside = dataset.split(len(images), share, seed_for(seed, "study test"))
    clean = truth.train_clean
    labels = images.labels if clean is None else torch.where(clean == UNKNOWN, images.labels, clean)
    return _rows(images, kept), Truth(None if clean is None else clean[kept], images.images[aside], labels[aside])


def _limited(images: LabeledImages, truth: Truth, source: DataSet, spec: TrainingSpec) -> Material:
    clean = truth.train_clean
    by = images.labels if clean is None else torch.where(clean == UNKNOWN, images.labels, clean)
    rows = _drawn(by, source.train, source.train_per_class, seed_for(spec.seed, "study train"))
    if rows is not None:
        images, clean = _rows(images, rows), None if clean is None else clean[rows]
    truth = replace(truth, train_clean=clean)
    if truth.test_images is not None and truth.test_labels is not None:
        rows = _drawn(truth.test_labels, source.test, source.test_per_class, seed_for(spec.seed, "study test images"))
        if rows is not None:
            truth = replace(truth, test_images=truth.test_images[rows], test_labels=truth.test_labels[rows])
    return Material(images, truth)


def _drawn(labels: Tensor, total: int | None, per_class: int | None, seed: int) -> Tensor | None:
    """Ascending rows of a random choice; None where nothing is left out."""
    if total is None and per_class is None:
        return None
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if per_class is not None:
        order = torch.cat([order[labels[order] == number][:per_class] for number in range(int(labels.max()) + 1)])
        order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
    return order[: len(order) if total is None else total].sort().values


def _rows(images: LabeledImages, rows: Tensor) -> LabeledImages:
    return replace(images, images=images.images[rows], labels=images.labels[rows], digest="")
