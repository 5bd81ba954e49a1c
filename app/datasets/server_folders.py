"""Folders of this host that the operator has named: one becomes a data set as if it had been uploaded.

The folder is packed once into a tar, which is what the data set keeps: images are read by their place in a file that
nobody changes, and a folder that others write to is none (decision 15).
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.errors import Fault, InsufficientStorage, InvalidRequest, TooLarge
from app.storage import ENOSPC_RETRY_S, Storage
from ml.formats import fsync

CHECK_SPACE_FILES = 1000  # free space is checked after so many files
BLOCK_BYTES = 512  # of a tar


def pack(
    reference: str, folders: Mapping[str, Path], target: Path, storage: Storage, *, most_bytes: int, min_free: int
) -> None:
    """Write the files of a folder into a tar, in the order of their names; links and special files are left out.

    Args:
        reference: A name among `folders`, or such a name and a path below it: `photos/2024`.
        folders: What the operator offers, by name.
        target: The tar, which must not exist.
        storage: For the check of free space.
        most_bytes: Of all files together.
        min_free: Bytes that must stay free on the disk.

    Raises:
        InvalidRequest: There is no such folder.
        TooLarge: It holds more.
        InsufficientStorage: The disk is full.
    """
    with _opened(reference, folders) as top, target.open("xb") as file:
        target.chmod(0o600)
        total = 0
        try:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for number, (path, descriptor) in enumerate(_files(top)):
                    with os.fdopen(descriptor, "rb") as source:
                        member = tarfile.TarInfo(path)
                        member.size = os.fstat(descriptor).st_size
                        total += member.size + BLOCK_BYTES
                        if total > most_bytes:
                            raise TooLarge(f"The folder holds more than {most_bytes} bytes.")
                        if number % CHECK_SPACE_FILES == 0:
                            storage.require(min_free + member.size)
                        tar.addfile(member, source)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise InsufficientStorage("The disk is full.", retry_after_s=ENOSPC_RETRY_S) from error
            raise _refused("unreadable_folder", f"A file of the folder cannot be read: {error.strerror}.") from error
    fsync.flush(target)


@contextmanager
def _opened(reference: str, folders: Mapping[str, Path]) -> Iterator[int]:
    """A descriptor of the folder. No step of the path may be a link, so that nothing outside is reached (SEC2)."""
    name, *steps = reference.split("/")
    if name not in folders:
        raise _refused("unknown_folder", "The operator offers no folder of this name (DENLL_SERVER_FOLDERS).")
    if any(step in ("", ".", "..") or "\0" in step for step in steps):
        raise _refused("unknown_folder", "A path below a folder has plain names between slashes.")
    descriptor = -1
    try:
        descriptor = os.open(folders[name], os.O_RDONLY | os.O_DIRECTORY)
        for step in steps:
            below = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise _refused("unknown_folder", "There is no such folder that the service may read.") from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _refused("unknown_folder", "A link is no folder.") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _files(top: int) -> Iterator[tuple[str, int]]:
    """Path and descriptor of every regular file below, sorted; the caller closes it."""
    for folder, names, files, descriptor in os.fwalk(".", dir_fd=top, follow_symlinks=False):
        names.sort()
        for name in sorted(files):
            opened = _open_file(name, descriptor)
            if opened is not None:
                yield os.path.normpath(f"{folder}/{name}"), opened


def _open_file(name: str, folder: int) -> int | None:
    """A descriptor; None for a link or a special file, and for a file that is gone."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _refused(code: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, errors=[Fault("/server_folder", code, detail)])
