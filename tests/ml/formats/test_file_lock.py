"""One process of a host holds a lock at a time, and a process that ends holds none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ml.formats import file_lock

HOLDER = """
import sys, pathlib
from ml.formats import file_lock
with file_lock.lock_folder(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_locked_until_its_process_is_killed(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            assert not file_lock.try_lock(descriptor)
            holder.kill()
        assert file_lock.try_lock(descriptor)
    finally:
        os.close(descriptor)


def test_a_lock_ends_with_the_block_also_after_an_error(tmp_path: Path) -> None:
    for error in (None, KeyError("inside")):
        try:
            with file_lock.lock_folder(tmp_path):
                other = os.open(tmp_path, os.O_RDONLY)
                assert not file_lock.try_lock(other)
                if error is not None:
                    raise error
        except KeyError:
            assert error is not None
        assert file_lock.try_lock(other)
        os.close(other)
