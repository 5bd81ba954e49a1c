"""The images of a run: a folder or archive, a data set of the service, or synthetic scenes, and which of them it uses.

Images are read once in a process and then held. Every random choice follows from the run's seed.

Shapes: `N` images, `T` test images, `S` side; images uint8 (N, S, S, 3), labels int64 (N,).
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

from ml import errors
from ml.data import container_dataset, dataset, published, stored_rows
from ml.data.dataset import UNKNOWN, LabeledImages, Truth
from ml.data.decoding import Resize
from ml.formats import dataset_index, fsync
from ml.formats.archive import is_description, read_archive
from ml.formats.entries import UNLIMITED
from ml.formats.errors import DatasetFormatError
from ml.formats.table_columns import ColumnNames
from ml.scenes import generate
from ml.scenes.drawn import DrawnBackgrounds, DrawnForegrounds
from ml.scenes.photographs import PhotoBackgrounds, PhotoForegrounds
from ml.scenes.protocols import Backgrounds, Foregrounds
from ml.study.plan import DataSet, Run
from ml.training.spec import TrainingSpec, seed_for

CLEAN_COLUMN = "clean"  # of a table in a study: the column of true labels, where it is there
PROBE = 12  # scenes drawn for a fingerprint
DEFAULT_TRAIN, DEFAULT_TEST = 1500, 600  # scenes, where the study sets no number
TRAINING_SETTINGS = ("noise", "noise_rate", "own_scene")  # of scenes


class DataPaths(NamedTuple):
    """Where a run's images are. Scenes have no folder, only photographs of what is not drawn."""

    folder: Path | None = None  # or an archive
    objects: Path | None = None  # cut-outs, see `ml.scenes.photographs`
    places: Path | None = None  # photographs behind them


@dataclass(frozen=True)
class RunData:
    """What one run is trained on and measured by."""

    images: LabeledImages
    truth: Truth
    extra_test_sets: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # images and labels by name
    object_centres: Tensor | None = None  # of the test images: x, y (T, 2) in pixels, NaN where no object shows


def locate_data(name: str, source: DataSet, folder: Path, paths: Mapping[str, Path]) -> DataPaths:
    """Where the images of a data set are.

    Args:
        name: Of the data set in the study.
        source: What the study says of it.
        folder: Of the study file, to which `source.path` is relative.
        paths: Paths by name that go before it (`--data`).

    Raises:
        UnusableData: A path is not known or does not exist (code no_data).
    """
    if source.source == "scenes":
        kinds = {"objects": source.objects, "places": source.places}
        return DataPaths(**{kind: _existing(of, paths.get(of)) for kind, of in kinds.items() if of is not None})
    own = None if source.path is None else folder / source.path
    return DataPaths(folder=_existing(name, paths.get(name, own)))


def _existing(name: str, path: Path | None) -> Path:
    if path is None:
        raise errors.UnusableData(f"where is the data set {name!r}?", hint=f"--data {name}=PATH", code="no_data")
    if not path.exists():
        raise errors.UnusableData(f"data set {name!r}: {path} does not exist", code="no_data")
    return path


@functools.cache
def fingerprint(paths: DataPaths, draw: str = "{}") -> str:
    """A digest that differs for different data, without decoding images.

    Args:
        paths: Where the images are. Of a folder, the names and sizes of its files and the bytes of its label files
            count; of an archive, names, sizes and checksums; of scenes, the bytes of all photographs and of a few
            scenes drawn with them.
        draw: Settings of scenes as JSON.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256()
    if paths.folder is None:
        for photographs in filter(None, (paths.objects, paths.places)):
            for file in _files(photographs):
                sha256 = fsync.hash_file(file).sha256
                digest.update(repr((file.relative_to(photographs).as_posix(), sha256)).encode())
        foregrounds, backgrounds = _scene_sources(paths)
        probe = generate.draw(PROBE, seed=0, foregrounds=foregrounds, backgrounds=backgrounds, **json.loads(draw))
        for array in (probe.images, probe.clean, probe.given_labels):
            digest.update(array.tobytes())
    elif dataset_index.is_ready(paths.folder):
        digest.update(repr(dataset_index.read_facts(paths.folder)["digest"]).encode())
    elif paths.folder.is_dir():
        for file in _files(paths.folder):
            digest.update(repr((file.relative_to(paths.folder).as_posix(), file.stat().st_size)).encode())
            if file.name in published.LABEL_FILES:  # other labels in them take as many bytes
                digest.update(fsync.hash_file(file).sha256.encode())
        tables = sorted(paths.folder.glob("*.csv"))
        others = [file for file in _files(paths.folder) if is_description(file.name) and file not in tables]
        for table in (*tables, *others):
            digest.update(table.read_bytes())
    else:
        _digest_archive(digest, paths.folder)
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
        digest.update(fsync.hash_file(path).sha256.encode())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def load(run: Run, paths: DataPaths) -> RunData:
    """The images of a run, test images among them; UnusableData where they cannot be read."""
    if paths.folder is None:
        return _draw_scenes(run, paths)
    spec, source = run.spec, run.source
    columns = (source.label_column,) if isinstance(source.label_column, str) else source.label_column or (None,)
    images, truth = _read(paths.folder, spec.image_size, spec.resize, tuple(columns))
    if truth.test_images is None and source.test_share > 0:
        images, truth = _hold_out_test(images, truth, source.test_share, spec.seed)
    return _limit(images, truth, source, spec)


@functools.lru_cache(maxsize=4)
def _read(path: Path, image_size: int, resize: Resize, columns: tuple[str | None, ...]) -> tuple[LabeledImages, Truth]:
    if dataset_index.is_ready(path):  # its labels were chosen when it was uploaded
        return dataset.load(path, image_size=image_size, resize=resize)
    choices = [ColumnNames(label=label, clean=clean) for label in columns for clean in (CLEAN_COLUMN, None)]
    loaded = container_dataset.load_container(path, image_size=image_size, resize=resize, columns=choices)
    return loaded.images, loaded.truth


@functools.lru_cache(maxsize=4)
def _scene_sources(paths: DataPaths) -> tuple[Foregrounds, Backgrounds]:
    """Foregrounds and backgrounds of scenes, drawn where there are no photographs."""
    foregrounds: Foregrounds
    foregrounds = DrawnForegrounds() if paths.objects is None else PhotoForegrounds.read(paths.objects)
    backgrounds: Backgrounds
    backgrounds = DrawnBackgrounds() if paths.places is None else PhotoBackgrounds.read(paths.places)
    return foregrounds, backgrounds


def _draw_scenes(run: Run, paths: DataPaths) -> RunData:
    source, side, seed = run.source, run.spec.image_size, run.spec.seed
    # Test images have clean labels and random scenes, whatever the training images have.
    settings = source.draw
    test_settings = {name: value for name, value in settings.items() if name not in TRAINING_SETTINGS}
    foregrounds, backgrounds = _scene_sources(paths)
    train_foregrounds, test_foregrounds = foregrounds.split(generate.HELD_OUT)
    train_backgrounds, test_backgrounds = backgrounds.split(generate.HELD_OUT)
    train = generate.draw(
        source.train or DEFAULT_TRAIN,
        seed=seed_for(seed, "scenes"),
        image_size=side,
        foregrounds=train_foregrounds,
        backgrounds=train_backgrounds,
        **settings,
    )
    draw_test = functools.partial(
        generate.draw,
        source.test or DEFAULT_TEST,
        image_size=side,
        foregrounds=test_foregrounds,
        backgrounds=test_backgrounds,
        **test_settings,
    )
    test_seed = seed_for(seed, "scenes to test on")
    test, extra = draw_test(seed=test_seed), {}
    if source.swapped:
        swapped = draw_test(seed=test_seed + 1, swapped=True)
        extra["swapped"] = (torch.from_numpy(swapped.images), torch.from_numpy(swapped.clean))
    images = LabeledImages(
        torch.from_numpy(train.images), torch.from_numpy(train.given_labels), train_foregrounds.classes
    )
    truth = Truth(torch.from_numpy(train.clean), torch.from_numpy(test.images), torch.from_numpy(test.clean))
    return RunData(images, truth, extra, torch.from_numpy(generate.mask_centres(test.masks)))


def _hold_out_test(images: LabeledImages, truth: Truth, share: float, seed: int) -> tuple[LabeledImages, Truth]:
    """Hold out a share of the images as test set; by clean labels where they are known."""
    train_rows, test_rows = dataset.split(len(images), share, seed_for(seed, "study test"))
    clean = truth.train_clean
    labels = images.labels if clean is None else torch.where(clean == UNKNOWN, images.labels, clean)
    return _select_rows(images, train_rows), Truth(
        None if clean is None else clean[train_rows], stored_rows.select(images.images, test_rows), labels[test_rows]
    )


def _limit(images: LabeledImages, truth: Truth, source: DataSet, spec: TrainingSpec) -> RunData:
    clean = truth.train_clean
    labels = images.labels if clean is None else torch.where(clean == UNKNOWN, images.labels, clean)
    rows = _draw_rows(labels, source.train, source.train_per_class, seed_for(spec.seed, "study train"))
    if rows is not None:
        images, clean = _select_rows(images, rows), None if clean is None else clean[rows]
    truth = replace(truth, train_clean=clean)
    if truth.test_images is not None and truth.test_labels is not None:
        rows = _draw_rows(
            truth.test_labels, source.test, source.test_per_class, seed_for(spec.seed, "study test images")
        )
        if rows is not None:
            truth = replace(
                truth,
                test_images=stored_rows.select(truth.test_images, rows),
                test_labels=truth.test_labels[rows],
            )
            images = replace(images, digest="")  # that of the whole set, test images included
    return RunData(images, truth)


def _draw_rows(labels: Tensor, total: int | None, per_class: int | None, seed: int) -> Tensor | None:
    """Ascending rows of a random choice of `total` images, at most `per_class` of each class; None if all are used."""
    if total is None and per_class is None:
        return None
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if per_class is not None:
        order = torch.cat([order[labels[order] == number][:per_class] for number in range(int(labels.max()) + 1)])
        order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
    return order[: len(order) if total is None else total].sort().values


def _select_rows(images: LabeledImages, rows: Tensor) -> LabeledImages:
    return replace(images, images=stored_rows.select(images.images, rows), labels=images.labels[rows], digest="")
