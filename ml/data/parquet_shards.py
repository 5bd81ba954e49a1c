"""From the Parquet shards in which Hugging Face publishes images to a tar of image files with a table of labels.

Needs pyarrow, the extra `parquet`. Memory holds one row group at a time.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml.formats import shards
from ml.formats.container import Container
from ml.formats.entries import Limits, check_bytes, check_count, too_large
from ml.formats.errors import printable
from ml.formats.records import reject
from ml.formats.table_columns import PATH_COLUMNS, SPLIT_COLUMN
from ml.formats.tables import LABEL_CHARS

BATCH_IMAGES = 64
TABLE = "labels.jsonl"
ENDINGS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"BM": "bmp", b"GI": "gif"}


def unpack(container: Container, target: Path, limits: Limits, progress: Callable[[], None] = lambda: None) -> None:
    """Write the images and the labels of shards as a plain tar: `train/00000017.jpg` and so on, and `labels.jsonl`.

    Args:
        container: Holds shards; see `shards.find_shards`.
        target: The tar, which must not exist. A shard at a time lies beside it.
        limits: How much the tar may hold.
        progress: Called after some images.

    Raises:
        DatasetFormatError: parquet_unsupported without pyarrow; bad_archive for a shard that cannot be read; bad_table
            for one without images; archive_too_large.
    """
    count = total = table_bytes = 0
    lines: list[bytes] = []
    with tarfile.open(target, "x", format=tarfile.USTAR_FORMAT) as tar, container.reader() as read:
        for entry in shards.find_shards(container.entries):
            shard = target.with_name("shard")
            shard.write_bytes(read(entry))
            split = shards.split_of(entry.path)
            for image, fields in _read(shard, entry.path):
                name = f"{split}/{count:08}.{ENDINGS.get((image or b'')[:2], 'jpg')}"
                if image is not None:
                    total += len(image)
                    check_bytes(name, len(image), total, limits)
                    _add(tar, name, image)
                line = json.dumps({PATH_COLUMNS[0]: name, **fields, SPLIT_COLUMN: split}).encode() + b"\n"
                table_bytes += len(line)
                if table_bytes > limits.table_bytes:
                    raise too_large(f"the labels have more than {limits.table_bytes} bytes", printable(entry.path))
                lines.append(line)
                count += 1
                check_count(count, limits)
                if count % BATCH_IMAGES == 0:
                    progress()
            shard.unlink()
        _add(tar, TABLE, b"".join(lines))
    target.chmod(0o600)


def _read(shard: Path, path: str) -> Iterator[tuple[bytes | None, dict[str, str]]]:
    """The bytes of each image, None where it has none, and the text of its other columns; `path` is for messages."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        reject(
            "parquet_unsupported",
            "Parquet shards need pyarrow, which is not installed for the workers",
            printable(path),
        )
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # others reserve more than the limit of memory
    try:
        with pyarrow.parquet.ParquetFile(shard) as file:
            image, columns = _columns(file.schema_arrow, path)
            names = {column: _class_names(file.schema_arrow, column) for column in columns}
            for batch in file.iter_batches(BATCH_IMAGES, columns=[image, *columns], use_threads=False):
                for row in batch.to_pylist():
                    value = row[image]
                    yield (
                        value["bytes"] if isinstance(value, dict) else value,
                        {column: _text(row[column], names[column]) for column in columns},
                    )
    except MemoryError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the disk's fault, not the shard's
        reject("bad_archive", f"the shard {printable(path)} cannot be read: {printable(error)}", printable(path))


def _columns(schema: Any, path: str) -> tuple[str, list[str]]:
    """The column of images, and the others that hold short values."""
    import pyarrow

    def has_bytes(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return any(field.name == "bytes" and has_bytes(field.type) for field in kind)
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    images = [field.name for field in schema if has_bytes(field.type)]
    if not images:
        reject(
            "bad_table", f"{printable(path)} has no column of images, only {printable(schema.names)}", printable(path)
        )
    reserved = {SPLIT_COLUMN, *PATH_COLUMNS}
    others = [
        field.name
        for field in schema
        if not (pyarrow.types.is_nested(field.type) or has_bytes(field.type)) and field.name not in reserved
    ]
    return images[0], others


def _class_names(schema: Any, column: str) -> list[str] | None:
    """Names by number where the column is a ClassLabel of Hugging Face."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"] if features[column]["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return list(map(str, names)) if isinstance(names, list) else None


def _text(value: object, names: list[str] | None) -> str:
    """A value as a table has it; what is no label, as it is too long or a hidden label (-1), is empty."""
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else ""
    text = "" if value is None else str(value)
    return text if len(text) <= LABEL_CHARS else ""


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o640
    tar.addfile(entry, io.BytesIO(data))
