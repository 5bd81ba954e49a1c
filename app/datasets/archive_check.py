"""The structure and the labels of an uploaded archive, checked by the same code before and during ingest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.errors import ArchiveRejected
from app.settings import Settings
from ml.formats import votes
from ml.formats.archive import read_archive
from ml.formats.entries import Limits
from ml.formats.errors import DatasetFormatError
from ml.formats.layout import Layout, resolve_labels
from ml.formats.records import reject
from ml.formats.shards import find_shards
from ml.formats.table_columns import ColumnNames

COLUMN_FIELDS = ("path_column", "label_column", "clean_column", "annotator_columns")


def archive_limits(settings: Settings) -> Limits:
    """The limits of uploaded archives in the settings."""
    return Limits(
        entries=settings.archive_entries,
        entry_bytes=settings.archive_entry_bytes,
        total_bytes=settings.archive_total_bytes,
        ratio=settings.archive_ratio,
    )


def check_archive(path: Path, fields: Mapping[str, Any], settings: Settings) -> Layout | None:
    """Read the structure of an archive and the labels of its images, from names and tables alone.

    Args:
        path: The archive.
        fields: Form fields of the upload; `path_column`, `label_column`, `clean_column` and
            `annotator_columns` are used if they were sent.
        settings: The limits of archives.

    Returns:
        The images with their labels; None for Parquet shards, which only ingest opens.

    Raises:
        ArchiveRejected: The archive is unsafe, damaged, too large, or its labels cannot be understood.
    """
    try:
        annotators = parse_annotators(fields.get("annotator_columns"))
        columns = ColumnNames(
            fields.get("path_column"), fields.get("label_column"), fields.get("clean_column"), annotators
        )
        archive = read_archive(path, archive_limits(settings))
        return None if find_shards(archive.entries) else resolve_labels(archive, columns)
    except DatasetFormatError as error:
        raise ArchiveRejected.from_format_error(error) from error


def parse_annotators(text: str | None) -> tuple[str, ...]:
    """The columns that `annotator_columns` names; DatasetFormatError unless they are two or more different ones."""
    names = () if text is None else votes.parse_names(text)
    if text is not None and (len(names) < 2 or "" in names or len(set(names)) < len(names)):
        reject("bad_columns", "annotator_columns names two or more different columns, separated by commas")
    return names
