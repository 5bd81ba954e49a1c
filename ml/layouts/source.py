"""Named bytes: files below a folder, or members of a zip, which is never extracted."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from ml.errors import UnusableData


class Source(Protocol):
    """Named bytes."""

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...


class Folder:
    """Files below a folder, by their path inside it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        return sorted(path.relative_to(self._path).as_posix() for path in self._path.rglob("*") if path.is_file())

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()


class Zip:
    """Members of a zip, by name; nothing is extracted."""

    def __init__(self, path: Path) -> None:
        self._zip = zipped(path)

    def names(self) -> list[str]:
        return sorted(info.filename for info in self._zip.infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        """OSError where the member is damaged, encrypted or packed in a way that Python does not know."""
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise OSError(f"{name} cannot be unpacked: {error}") from error


class Known:
    """A source whose names were listed once."""

    def __init__(self, source: Source) -> None:
        self._source, self._names = source, source.names()

    def names(self) -> list[str]:
        return self._names

    def read(self, name: str) -> bytes:
        return self._source.read(name)


def opened(path: Path) -> Source:
    """A folder or a zip; UnusableData where neither is there."""
    return Known(Folder(path) if path.is_dir() else Zip(path))


def zipped(path: Path) -> zipfile.ZipFile:
    """An open zip; UnusableData where there is none."""
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise UnusableData(f"{path} does not exist", code="no_data") from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UnusableData(f"{path} is neither a folder nor a zip: {error}", code="no_zip") from error


def text(source: Source, name: str) -> str:
    """A text file; UnusableData (dataset_corrupt) where it is not UTF-8."""
    try:
        return source.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableData(f"{name} is not UTF-8 text", hint="save it as UTF-8", code="dataset_corrupt") from error


def beside(names: list[str], leaf: str) -> Mapping[str, str] | None:
    """The files of the folder in which a file of this name lies, by their own names; the topmost such folder."""
    homes = [PurePosixPath(name).parent for name in names if PurePosixPath(name).name == leaf]
    if not homes:
        return None
    home = min(homes, key=lambda each: (len(each.parts), each))
    return {PurePosixPath(name).name: name for name in names if PurePosixPath(name).parent == home}
