"""An archive - zip, or tar, tar.gz, tar.zst - whose structure is checked before anything is read from it (Z1-Z5).

It lists every file with the place of its bytes, so that they can be read where they lie; nothing is extracted.
`zip_directory` and `tar_headers` parse the two formats. Whether files are images is not known here.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import mmap
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ml.formats import tar_headers, zip_directory
from ml.formats.entries import (
    CHUNK_BYTES,
    DEFAULT_LIMITS,
    Entry,
    Limits,
    StoredFile,
    bad,
    check_table_bytes,
    restore,
    too_large,
)
from ml.formats.errors import DatasetFormatError, printable

GZIP_MAGIC, ZSTD_MAGIC, ZIP_MAGICS = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"PK\x03\x04", b"PK\x05\x06")
CLASS_LIST = "classes.txt"
ANNOTATION_ENDINGS = (".json", ".cls")
ZSTD_READ_BYTES = 128 << 10
MAX_ZSTD_FRAMES = 100_000  # parallel compressors write a frame for some megabytes


@dataclass(frozen=True)
class Archive:
    """The files of an archive.

    Args:
        path: The archive on disk.
        container: How the files lie in it, once decompressed.
        compression: What is around a tar; empty for none, and for a zip.
        entries: Its files.
        folders: Names of its folders, each ending in `/`, as far as it lists them.
        limits: What it was checked against.
        tables: Contents of the tables in a compressed tar, which is read once only.
    """

    path: Path
    container: Literal["zip", "tar"]
    compression: Literal["", "gzip", "zstd"]
    entries: list[Entry]
    folders: list[str]
    limits: Limits
    tables: dict[str, bytes] = field(default_factory=dict)

    def content(self, entry: Entry) -> bytes:
        """The bytes of a table or a class list.

        Raises:
            DatasetFormatError: archive_too_large beyond `limits.table_bytes` (C5), bad_archive where it is damaged.
        """
        check_table_bytes([entry], self.limits)
        if self.compression:
            if entry.path not in self.tables:
                raise too_large(f"{printable(entry.path)!r} and others have more than {self.limits.table_bytes} bytes")
            return self.tables[entry.path]
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            stored = file.read(entry.stored_bytes)
        try:
            return restore(stored, entry)
        except DatasetFormatError as error:
            if error.code == "archive_too_large":
                raise
            raise bad(f"the table {printable(entry.path)!r} is damaged", entry.path) from error

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[StoredFile], bytes]]:
        """A function from a file of the archive to its bytes; for its errors see `entries.restore`.

        A compressed tar is decompressed into a temporary file for as long as the context lasts.
        """
        with contextlib.ExitStack() as stack:
            plain = self.path
            if self.compression:
                plain = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "plain.tar"
                decompress(self.path, plain, self.limits)
            yield stack.enter_context(reader(plain))


class ZstdStream:
    """The decompressed bytes of a zstd file of not too many frames: an empty frame costs time, but no bytes."""

    def __init__(self, file: BinaryIO, new_decompressor: Callable[[], Any]) -> None:
        self._file, self._new_decompressor = file, new_decompressor
        self._frame, self._frames = new_decompressor(), 1

    def read(self, count: int) -> bytes:
        """At most `count` bytes, at least one; none at the end. EOFError where the last frame is incomplete."""
        while True:
            if self._frame.eof:
                compressed = self._frame.unused_data or self._file.read(ZSTD_READ_BYTES)
                if not compressed:
                    return b""
                self._frame, self._frames = self._new_decompressor(), self._frames + 1
                if self._frames > MAX_ZSTD_FRAMES:
                    raise too_large(f"the archive has more than {MAX_ZSTD_FRAMES} zstd frames")
            else:
                compressed = self._file.read(ZSTD_READ_BYTES) if self._frame.needs_input else b""
                if self._frame.needs_input and not compressed:
                    raise EOFError("the last zstd frame is incomplete")
            data: bytes = self._frame.decompress(compressed, count)
            if data:
                return data

    def close(self) -> None:
        """Nothing: the file belongs to the caller."""


def read_archive(path: Path, limits: Limits = DEFAULT_LIMITS) -> Archive:
    """Check the structure of an archive and list its files.

    Args:
        path: A zip, or a tar that is plain or compressed by gzip or zstd; recognised by its content, not its name.
        limits: What it may hold.

    Raises:
        DatasetFormatError: bad_archive, encrypted_archive, ambiguous_archive, unsafe_entry_name, unsafe_entry_type,
            archive_too_large.
        OverBudget: Listing it would cost more than `limits.budget`.
    """
    with path.open("rb") as file:
        start = file.read(512)
        if not start:
            raise bad("the archive is empty (0 bytes)")
        if start.startswith(ZIP_MAGICS):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                entries, folders = zip_directory.read(view, limits)
            return Archive(path, "zip", "", entries, folders, limits)
        if compression := _compression(start):
            with _decompressor(file, compression) as plain:
                stream = tar_headers.DecompressedTar(plain, file, limits)
                entries, folders, tables = tar_headers.read(stream, limits, keep=is_description, may_keep=is_annotation)
            return Archive(path, "tar", compression, entries, folders, limits, tables)
        if tar_headers.looks_like(start):
            entries, folders, _ = tar_headers.read(tar_headers.PlainTar(file), limits)
            return Archive(path, "tar", "", entries, folders, limits)
    raise bad("not a zip and not a tar (plain, gzip or zstd)")


def decompress(path: Path, target: Path, limits: Limits = DEFAULT_LIMITS) -> bool:
    """Decompress a compressed tar.

    Args:
        path: An archive.
        target: The file to write, which must not exist.
        limits: How much may come out of it.

    Returns:
        False, and no file is written, where `path` is a zip or a plain tar.

    Raises:
        DatasetFormatError: archive_too_large, bad_archive.
    """
    with path.open("rb") as file:
        compression = _compression(file.read(4))
        if not compression:
            return False
        with _decompressor(file, compression) as plain, target.open("xb") as out:
            stream = tar_headers.DecompressedTar(plain, file, limits)
            while chunk := stream.read(CHUNK_BYTES):
                out.write(chunk)
    target.chmod(0o600)
    return True


@contextlib.contextmanager
def reader(path: Path) -> Iterator[Callable[[StoredFile], bytes]]:
    """A function from a file of a zip or a plain tar to its bytes, read where they lie.

    The archive is mapped for as long as the context lasts. The function may be called by several threads; for its
    errors see `entries.restore`.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield lambda stored: restore(view[stored.offset : stored.offset + stored.stored_bytes], stored)


def is_table(path: str) -> bool:
    """Whether a file of this name is read as a table."""
    return path.lower().endswith((".csv", ".tsv", ".jsonl"))


def is_class_list(path: str) -> bool:
    """Whether a file of this name lists the names of classes."""
    return path.rpartition("/")[2].lower() == CLASS_LIST


def is_description(path: str) -> bool:
    """Whether a file of this name describes the images: a table or a list of classes."""
    return is_table(path) or is_class_list(path)


def is_annotation(path: str) -> bool:
    """Whether a file of this name may describe images as other programs do; see `ml.formats.annotation_files`."""
    return path.lower().endswith(ANNOTATION_ENDINGS)


def _compression(start: bytes) -> Literal["", "gzip", "zstd"]:
    if start.startswith(GZIP_MAGIC):
        return "gzip"
    return "zstd" if start.startswith(ZSTD_MAGIC) else ""


@contextlib.contextmanager
def _decompressor(file: BinaryIO, compression: Literal["gzip", "zstd"]) -> Iterator[BinaryIO]:
    """The tar inside, decompressed as it is read. zstd is in the standard library from Python 3.14 on."""
    file.seek(0)
    damage: tuple[type[Exception], ...] = (EOFError, zlib.error)
    reader: contextlib.AbstractContextManager[Any]
    if compression == "gzip":
        reader = contextlib.closing(gzip.GzipFile(fileobj=file))
    else:
        zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
        damage = (*damage, zstd.ZstdError)
        reader = contextlib.closing(ZstdStream(file, zstd.ZstdDecompressor))
    try:
        with reader as plain:
            yield plain
    except damage as error:
        raise bad(f"the compressed tar is damaged: {printable(error)}") from error
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's fault, not the archive's
        raise bad(f"the compressed tar is damaged: {printable(error)}") from error
