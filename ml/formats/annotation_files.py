"""Annotations as other programs write them - COCO, Label Studio, WebDataset - read as a table of labels.

COCO and Label Studio have one JSON document for all images. WebDataset has a sample of files with one stem for each:
`000017.jpg` with `000017.json`, or `000017.cls`, the number of its class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard
from urllib.parse import unquote

from ml.formats.archive import ANNOTATION_ENDINGS, is_annotation
from ml.formats.container import Container
from ml.formats.entries import Entry, check_table_bytes
from ml.formats.errors import DatasetFormatError, printable
from ml.formats.records import SPLITS, reject
from ml.formats.table_columns import LABEL_COLUMNS, PATH_COLUMNS
from ml.formats.tables import LINE_BYTES, Table, as_text

MAX_DOCUMENTS = 20  # of which it is asked whether they hold annotations
HEAVY_KEYS = ("segmentation", "bbox", "keypoints", "caption")  # of COCO's annotations: nothing is learned from them
FILE, LABEL = PATH_COLUMNS[0], LABEL_COLUMNS[0]
SAMPLES = "*.json, *.cls"  # stands for the name of a table
# `train` of instances_train2017.json: COCO names its documents so
_document_split = re.compile(r"(?:.*[^a-z])?(train|val|valid|test)\d*").fullmatch
_stored_by_label_studio = re.compile(r"/data/upload/\d+/(?:[0-9a-f]{8}-)?(.*)", re.DOTALL).fullmatch

Fields = dict[str, str]


def read_documents(
    container: Container, images: Mapping[str, Entry], files: Mapping[str, Entry], max_rows: int
) -> dict[str, Table]:
    """The documents of COCO or Label Studio, as tables by path; others are passed over.

    Args:
        container: The data set.
        images: Its images by path.
        files: Its other files by path.
        max_rows: With more rows a document is refused.

    Raises:
        DatasetFormatError: bad_table, table_too_large, archive_too_large.
    """
    stems = set(map(_stem, images))  # what lies beside an image is about this image alone
    paths = [path for path in files if path.lower().endswith(".json") and _stem(path) not in stems]
    paths = sorted(paths, key=lambda path: (path.count("/"), path))[:MAX_DOCUMENTS]
    check_table_bytes((files[path] for path in paths), container.limits)
    tables = {}
    for path in paths:
        rows = _parse_document(path, container.content(files[path]))
        if rows is not None:
            tables[path] = _to_table(path, rows, max_rows)
    return tables


def document_split(path: str) -> str | None:
    """The split that the name of a document says, else its folder; see `records.SPLITS`."""
    *_, folder, name = ("", *path.lower().split("/"))
    match = _document_split(_stem(name))
    return SPLITS[match[1]] if match else SPLITS.get(folder)


def read_samples(
    container: Container, images: Mapping[str, Entry], files: Mapping[str, Entry], max_rows: int
) -> Table | None:
    """The labels of a WebDataset as a table; None where not every second image belongs to a sample.

    Args and errors are those of `read_documents`.
    """

    labelled = sum(any(_stem(path) + ending in files for ending in ANNOTATION_ENDINGS) for path in images)
    if 2 * labelled <= len(images):
        return None
    samples = (files.get(_stem(path) + ending) for path in images for ending in ANNOTATION_ENDINGS)
    check_table_bytes(filter(None, samples), container.limits)

    def rows() -> Iterator[tuple[int, Fields]]:
        for number, path in enumerate(images, 1):
            stem = _stem(path)
            row = {FILE: path}
            if (entry := files.get(f"{stem}.json")) is not None:
                row = {**_read_json_sample(container, entry), **row}
            if (entry := files.get(f"{stem}.cls")) is not None and not row.get(LABEL):
                row[LABEL] = _read_sample(container, entry).strip()
            yield number, row

    return _to_table(SAMPLES, rows(), max_rows)


def sample_name(path: str) -> str | None:
    """The name of the table of samples for a file that belongs to one by its ending; None for others."""
    return SAMPLES if is_annotation(path) else None


def local_path(path: str) -> str:
    """The path in the archive that a table means: Label Studio's addresses of files hold one, others are kept."""
    if path.startswith("/data/local-files/?d="):
        return unquote(path.partition("?d=")[2])
    match = _stored_by_label_studio(path)
    return unquote(match[1]) if match else path


def _stem(path: str) -> str:
    """The path without the ending of its file."""
    return path.rpartition(".")[0]


def _read_sample(container: Container, entry: Entry) -> str:
    if entry.image_bytes > LINE_BYTES:
        raise DatasetFormatError(
            "table_too_large", f"{printable(entry.path)} has more than {LINE_BYTES} bytes", entry.path
        )
    try:
        return container.content(entry).decode("utf-8-sig")
    except UnicodeDecodeError:
        reject("bad_encoding", f"{printable(entry.path)} is not UTF-8", entry.path)


def _read_json_sample(container: Container, entry: Entry) -> Fields:
    try:
        value = json.loads(_read_sample(container, entry))
    except (ValueError, RecursionError) as error:
        reject("bad_table", f"{printable(entry.path)} is not JSON: {printable(error)}", entry.path)
    if not isinstance(value, dict):
        reject("bad_table", f"{printable(entry.path)} is not a JSON object", entry.path)
    return _scalars(value)


def _parse_document(path: str, data: bytes) -> Iterator[tuple[int, Fields]] | None:
    """Numbers and rows of a document; None for one of another kind."""

    def slim(value: dict[str, Any]) -> dict[str, Any]:
        for key in HEAVY_KEYS:
            value.pop(key, None)
        return value

    try:
        document = json.loads(data, object_hook=slim)
    except (ValueError, RecursionError):
        return None
    if isinstance(document, dict) and all(
        _is_objects(document.get(key)) for key in ("images", "categories", "annotations")
    ):
        return _coco(path, document)
    if _is_objects(document) and document:
        if all(isinstance(task.get("data"), dict) for task in document):
            return _label_studio(document)
        if all(any(isinstance(item.get(name), str) for name in PATH_COLUMNS) for item in document):
            return enumerate(map(_scalars, document), 1)
    return None


def _is_objects(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _coco(path: str, document: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[int, Fields]]:
    """A row for each image and category that annotations give it; without an annotation it has no label."""
    names = {as_text(category.get("id")): as_text(category.get("name")) for category in document["categories"]}
    labels: dict[str, dict[str, Fields]] = {as_text(image.get("id")): {} for image in document["images"]}
    for number, annotation in enumerate(document["annotations"], 1):
        image, category = as_text(annotation.get("image_id")), as_text(annotation.get("category_id"))
        if image not in labels or category not in names:
            what = f"category {printable(category, 60)}" if image in labels else f"image {printable(image, 60)}"
            where = f"{printable(path)}, annotation {number}"
            reject("bad_table", f"{where}: there is no {what}", where)
        attributes = annotation.get("attributes")
        labels[image][names[category]] = _scalars(attributes) if isinstance(attributes, dict) else {}
    for number, item in enumerate(document["images"], 1):
        file = as_text(item.get("file_name"))
        for label, attributes in (labels[as_text(item.get("id"))] or {"": {}}).items():
            yield number, {**attributes, FILE: file, LABEL: label}


def _label_studio(tasks: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Fields]]:
    """A row for each image and choice that annotations give it, with the other data of its task."""
    for number, task in enumerate(tasks, 1):
        data = _scalars(task["data"])
        key = next((name for name in ("image", *PATH_COLUMNS) if name in data), next(iter(data), ""))
        row = {name: value for name, value in data.items() if name != key} | {FILE: data.get(key, "")}
        for label in dict.fromkeys(_choices(task)) or ("",):
            yield number, {**row, LABEL: label}


def _choices(task: Mapping[str, Any]) -> Iterator[str]:
    annotations = task.get("annotations")
    for annotation in annotations if _is_objects(annotations) else ():
        results = () if annotation.get("was_cancelled") else annotation.get("result")
        for result in results if _is_objects(results) else ():
            value = result.get("value")
            choices = value.get("choices") if isinstance(value, dict) else None
            yield from map(as_text, choices if isinstance(choices, list) else ())


def _scalars(values: Mapping[str, Any]) -> Fields:
    return {key: as_text(value) for key, value in values.items() if not isinstance(value, (dict, list))}


def _to_table(path: str, rows: Iterable[tuple[int, Fields]], max_rows: int) -> Table:
    """A table of the columns that any row has."""
    collected: list[tuple[int, Fields]] = []
    columns: dict[str, None] = {}
    for number, row in rows:
        if len(collected) == max_rows:
            raise DatasetFormatError(
                "table_too_large", f"{printable(path)} has more than {max_rows} rows", printable(path)
            )
        columns |= dict.fromkeys(row)
        collected.append((number, row))
    names = tuple(columns)
    return Table(path, names, [(number, [row.get(name, "") for name in names]) for number, row in collected], "entry")
