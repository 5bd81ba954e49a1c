"""Pickled dictionaries of numbers, text and numpy arrays, read by an allow-list: a pickle is a program, and one that
asks for anything else is refused before any of that runs.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import numpy as np

from ml.errors import UnusableData

LARGEST_BYTES = 1 << 30  # of a pickle inside an archive


class _ArrayUnpickler(pickle.Unpickler):
    """Allows the functions and classes that rebuild numpy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        array, number = np.zeros(1), np.int64(0)
        allowed = {
            "_reconstruct": array.__reduce__()[0],
            "_frombuffer": array.__reduce_ex__(5)[0],
            "scalar": number.__reduce__()[0],
            "ndarray": np.ndarray,
            "dtype": np.dtype,
        }
        if module == "_codecs" and name == "encode":
            return _latin1
        if module.split(".", maxsplit=1)[0] == "numpy" and name in allowed:
            return allowed[name]
        raise UnusableData(
            f"the pickle asks for {module}.{name}, which no array of numbers needs",
            hint="get the file from its authors: this one may do harm",
            code="unsafe_pickle",
        )

    def persistent_load(self, pid: Any) -> Any:
        raise UnusableData("the file holds tensors, not arrays", code="unreadable_pickle")


def read(data: bytes, what: str) -> dict[str, Any]:
    """The dictionary in a pickle of Python 2 or 3; UnusableData (unsafe_pickle, unreadable_pickle) naming `what`."""
    try:
        content = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except UnusableData:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise UnusableData(f"{what} cannot be unpickled: {error}", code="unreadable_pickle") from error
    if not isinstance(content, dict):
        raise UnusableData(f"{what} holds no dictionary", code="unreadable_pickle")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def read_zipped(data: bytes, what: str) -> dict[str, Any]:
    """The same of a `.pt` file: a zip with one data.pkl."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = [info for info in archive.infolist() if info.filename.rsplit("/", 1)[-1] == "data.pkl"]
            if len(inside) != 1 or inside[0].file_size > LARGEST_BYTES:
                raise UnusableData(f"{what} is not a zip with one data.pkl", code="unreadable_pickle")
            packed = archive.read(inside[0])
    except (zipfile.BadZipFile, OSError) as error:
        raise UnusableData(f"{what} is not a zip with one data.pkl", code="unreadable_pickle") from error
    return read(packed, what)


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes where Python 2 shall read them: codecs.encode, of this one encoding."""
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")
