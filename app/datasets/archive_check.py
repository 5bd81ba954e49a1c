"""The structure and the labels of an uploaded archive, checked by the same code before and during ingest.

Before it, a check costs at most a constant times the size of the upload: what costs more is left to ingest, whose
refusal is the same problem.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.errors import ArchiveRejected
from app.settings import MIB, Settings
from ml.formats import votes
from ml.formats.archive import read_archive
from ml.formats.entries import Budget, Limits, OverBudget
from ml.formats.errors import DatasetFormatError
from ml.formats.layout import Layout, resolve_labels
from ml.formats.records import reject
from ml.formats.shards import find_shards
from ml.formats.table_columns import ColumnNames

COLUMN_FIELDS = ("path_column", "label_column", "clean_column", "annotator_columns")

# What a check before ingest may cost: a name takes up to 4 KiB of memory, a byte of a table up to 100.
NAMES, BYTES_PER_NAME = 3000, 1024
INFLATED_BYTES, INFLATION = 32 * MIB, 4
TABLE_BYTES, BYTES_PER_TABLE_BYTE, MOST_TABLE_BYTES = 64 * 1024, 32, MIB


def check_upload(path: Path, fields: Mapping[str, Any], settings: Settings) -> None:
    """Check an upload as far as that is cheap; ArchiveRejected as `check_archive`."""
    size = path.stat().st_size
    budget = Budget(
        names=NAMES + size // BYTES_PER_NAME,
        inflated_bytes=INFLATED_BYTES + size * INFLATION,
        table_bytes=min(TABLE_BYTES + size // BYTES_PER_TABLE_BYTE, MOST_TABLE_BYTES),
    )
    with contextlib.suppress(OverBudget):
        check_archive(path, fields, settings, budget)


def archive_limits(settings: Settings) -> Limits:
    """The limits of uploaded archives in the settings."""
    return Limits(
        entries=settings.archive_entries,
        entry_bytes=settings.archive_entry_bytes,
        total_bytes=settings.archive_total_bytes,
        ratio=settings.archive_ratio,
    )


def check_archive(
    path: Path, fields: Mapping[str, Any], settings: Settings, budget: Budget | None = None
) -> Layout | None:
    """Read the structure of an archive and the labels of its images, from names and tables alone.

    Args:
        path: The archive.
        fields: Form fields of the upload; `path_column`, `label_column`, `clean_column` and
            `annotator_columns` are used if they were sent.
        settings: The limits of archives.
        budget: What the check may cost.

    Returns:
        The images with their labels; None for Parquet shards, which only ingest opens.

    Raises:
        ArchiveRejected: The archive is unsafe, damaged, too large, or its labels cannot be understood.
        OverBudget: The check would cost more than `budget`.
    """
    try:
        annotators = parse_annotators(fields.get("annotator_columns"))
        columns = ColumnNames(
            fields.get("path_column"), fields.get("label_column"), fields.get("clean_column"), annotators
        )
        archive = read_archive(path, replace(archive_limits(settings), budget=budget))
        return None if find_shards(archive.entries) else resolve_labels(archive, columns)
    except DatasetFormatError as error:
        raise ArchiveRejected.from_format_error(error) from error


def parse_annotators(text: str | None) -> tuple[str, ...]:
    """The columns that `annotator_columns` names; DatasetFormatError unless they are two or more different ones."""
    names = () if text is None else votes.parse_names(text)
    if text is not None and (len(names) < 2 or "" in names or len(set(names)) < len(names)):
        reject("bad_columns", "annotator_columns names two or more different columns, separated by commas")
    return names
