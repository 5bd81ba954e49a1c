"""`python -m worker.publish_weights` publishes the pretrained weights of this data folder for every host.

`python -m ml weights add` installs weights in the data folder and knows no object store. Without an object store this
command does nothing.
"""

from __future__ import annotations

import os
import sys

from app import local_files
from app.errors import Problem
from app.settings import current
from app.shared_storage import SharedStorage, open_storage
from app.storage import Storage
from ml.formats import weights_folder


def publish(files: Storage) -> list[str]:
    """Publish installed weights that the object store has none of the same name of; their names.

    Raises:
        StorageUnavailable, InsufficientStorage: The object store cannot be reached, or is full.
    """
    if not isinstance(files, SharedStorage):
        return []
    known = {record.name for record in files.installed_weights()}
    published = []
    for record in weights_folder.installed(files.weights()):
        if record.name in known:
            continue
        copy = files.new_weights()
        os.link(weights_folder.weights_path(files.weights(), record.name), copy)
        try:
            files.install_weights(copy, record)
        finally:
            copy.unlink(missing_ok=True)
        published.append(record.name)
    return published


def main() -> None:
    local_files.keep_private()
    files = open_storage(current())
    files.create()
    try:
        for name in publish(files):
            print(name)
    except Problem as problem:
        sys.exit(f"nothing was published: {problem.detail}")


if __name__ == "__main__":
    main()
