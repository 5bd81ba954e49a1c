"""Writes shards with Hugging Face's `datasets`, and unpacks shards; runs in the environment `.venv-readers`.

`write FOLDER` makes a data set of the images in FOLDER, whose names are `<split>-<label>-<n>.<ending>`, and writes
`<split>-0000N-of-00002.parquet`. `unpack ARCHIVE TARGET` unpacks under the memory limit of a worker's child and prints
the code of a refusal.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

CLASSES = ["dog", "cat", "=odd, name"]
MEMORY_BYTES = 4 << 30


def write(folder: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image, Value

    features = Features({
        "note": Value("string"), "img": Image(), "label": ClassLabel(names=CLASSES), "expert": Value("string"),
    })  # fmt: skip
    files = [file for file in sorted(folder.iterdir()) if file.suffix != ".parquet"]
    for split in ("train", "test"):
        of_split = [file for file in files if file.name.startswith(split)]
        for shard in range(2):
            part = of_split[shard::2]
            labels = [file.name.split("-")[1] for file in part]
            columns = {
                "note": ["x" * 500] * len(part),
                "img": [{"bytes": file.read_bytes(), "path": file.name} for file in part],
                "label": [CLASSES.index(label) for label in labels],
                "expert": labels[::-1],
            }
            Dataset.from_dict(columns, features).to_parquet(folder / f"{split}-0000{shard}-of-00002.parquet")


def unpack(archive: Path, target: Path) -> str:
    from ml.data import parquet_shards
    from ml.formats.archive import read_archive
    from ml.formats.entries import Limits
    from ml.formats.errors import DatasetFormatError

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        parquet_shards.unpack(read_archive(archive), target, Limits(total_bytes=1 << 20))
    except DatasetFormatError as error:
        return error.code
    return ""


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        print(unpack(Path(sys.argv[2]), Path(sys.argv[3])))
