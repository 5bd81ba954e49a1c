"""Files of a host appear, change and go as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app import local_files


def test_files_removed_are_gone_at_once(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "y" / "z").write_bytes(b"123")
    assert local_files.remove(tmp_path / "x") == 3
    assert local_files.remove(tmp_path / "x") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "facts"
    local_files.write_atomic(path, b"old")
    local_files.write_atomic(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)

    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        local_files.write_atomic(tmp_path / "folder", b"new")
    assert {entry.name for entry in tmp_path.iterdir()} == {"facts", "folder"}


def test_a_file_gets_a_second_name_or_a_copy_where_links_end(tmp_path: Path) -> None:
    source, other = tmp_path / "source", Path("/dev/shm")
    source.write_bytes(b"bytes")
    local_files.link_or_copy(source, tmp_path / "link")
    assert (tmp_path / "link").samefile(source)

    if other.is_dir() and other.stat().st_dev != tmp_path.stat().st_dev:
        copy = other / f"copy-{os.getpid()}"
        try:
            local_files.link_or_copy(source, copy)
            assert copy.read_bytes() == b"bytes"
        finally:
            copy.unlink()
    with pytest.raises(FileNotFoundError):
        local_files.link_or_copy(tmp_path / "nothing", tmp_path / "copy")


def test_ranges_of_a_file_are_read_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with local_files.reading(tmp_path / "file") as read:
        assert [read(7, 2), read(0, 3), read(9, 5)] == [b"78", b"012", b"9"]
    with pytest.raises(FileNotFoundError), local_files.reading(tmp_path / "nothing"):
        pass
