"""The structure of archives, Z1-Z5: what is refused, by which code, and that hostile bytes raise nothing else."""

from __future__ import annotations

import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import ArchiveRejected
from ml.formats.archive import MAX_ZSTD_FRAMES, Archive, decompress, read_archive
from ml.formats.entries import Budget, Limits, OverBudget
from ml.formats.errors import DatasetFormatError
from ml.formats.layout import resolve_labels
from tests import pictures
from tests.pictures import Raw, hand_zip

JPEG = pictures.encoded(1)
Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(data: bytes) -> Path:
        path = tmp_path / "upload"
        path.write_bytes(data)
        return path

    return to_file


def refusal(path: Path, **limits: Any) -> ArchiveRejected:
    """The problem with which the service refuses the archive."""
    with pytest.raises(DatasetFormatError) as caught:
        read_archive(path, Limits(**limits))
    return ArchiveRejected.from_format_error(caught.value)


def both(name: str) -> list[bytes]:
    """The same name in a zip and in a tar."""
    return [hand_zip([Raw(name.encode(), JPEG)]), pictures.tarred({name: JPEG})]


@pytest.mark.parametrize("deflated", [False, True])
def test_a_zip_is_read_as_it_was_written(write: Write, deflated: bool) -> None:
    files = {**pictures.class_folders(), "ä/😀.png": JPEG, "big/table.csv": b"a,b\n" * 9999}
    result = read_archive(write(pictures.zipped(files, deflated=deflated, folders=["empty"])))
    assert (result.container, result.compression, result.folders) == ("zip", "", ["empty/"])
    assert {entry.path: result.content(entry) for entry in result.entries} == files


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compression", ["", "gz", "zst"])
def test_a_tar_is_read_as_it_was_written(write: Write, tmp_path: Path, compression: str, kind: int) -> None:
    deep = "/".join(["folder" * 8] * 3)  # beyond the 100 bytes of the oldest header
    files = {**pictures.class_folders(), "labels.csv": b"a,b\n" * 999, f"{deep}/ä.jpg": JPEG, "empty.txt": b""}
    path = write(pictures.tarred(files, compression=compression, kind=kind))
    result = read_archive(path)
    assert result.container == "tar"
    assert result.content(next(entry for entry in result.entries if entry.path == "labels.csv")) == files["labels.csv"]
    plain = tmp_path / "plain"
    assert decompress(path, plain) == bool(compression)
    tar = (plain if compression else path).read_bytes()
    assert {entry.path: tar[entry.offset :][: entry.stored_bytes] for entry in result.entries} == files


def extended(records: bytes) -> bytes:
    """A tar of one file behind an extended header with these records."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    padded = records + bytes(-len(records) % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.USTAR_FORMAT) + padded + tarfile.TarInfo("a.jpg").tobuf() + bytes(1024)


@pytest.mark.parametrize(
    ("records", "code"),
    [(b"6 a=b\n" * 1001, "archive_too_large"), (b"30 a=" + b"b" * 300_000, "unsafe_entry_name")],
)
def test_Z3_extended_headers_of_a_tar_are_limited(write: Write, records: bytes, code: str) -> None:
    assert [entry.path for entry in read_archive(write(extended(b"6 a=b\n" * 1000))).entries] == ["a.jpg"]
    with pytest.raises(DatasetFormatError) as caught:
        read_archive(write(extended(records)))
    assert caught.value.code == code


def long_name(kind: bytes, body: bytes) -> bytes:
    """An extended header of this kind: `L` of GNU, `x` of pax."""
    header = tarfile.TarInfo("extended")
    header.type, header.size = kind, len(body)
    return header.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % tarfile.BLOCKSIZE)


@pytest.mark.parametrize("second", [(b"L", b"b.jpg\0"), (b"x", b"14 path=b.jpg\n"), (b"x", b"14 path=a.jpg\n")])
@pytest.mark.parametrize("first", [(b"L", b"a.jpg\0"), (b"x", b"14 path=a.jpg\n")])
def test_Z4_a_file_of_a_tar_has_one_long_name(
    write: Write, first: tuple[bytes, bytes], second: tuple[bytes, bytes]
) -> None:
    """GNU tar takes the last of two, and any of pax before its own; Python takes the first."""
    tar = long_name(*first) + long_name(*second) + tarfile.TarInfo("c.jpg").tobuf() + bytes(1024)
    if b"b.jpg" in second[1]:
        assert refusal(write(tar)).code == "ambiguous_archive"
    else:
        assert [entry.path for entry in read_archive(write(tar)).entries] == ["a.jpg"]


@pytest.mark.parametrize("header", [(b"L", b"\0"), (b"x", b"8 path=\n")])
def test_Z1_an_empty_long_name_is_refused(write: Write, header: tuple[bytes, bytes]) -> None:
    tar = long_name(*header) + tarfile.TarInfo("c.jpg").tobuf() + bytes(1024)
    assert refusal(write(tar)).code == "unsafe_entry_name"


def test_Z4_a_number_of_a_tar_ends_with_its_first_zero_byte(write: Write) -> None:
    """Some programs read no size in these bytes, others 7."""
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    header[124:136], header[148:156] = b"\0" * 10 + b"07", b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert refusal(write(bytes(header) + bytes(1536))).code == "bad_archive"


@pytest.mark.parametrize("compression", ["zip", "", "gz"])
def test_reading_ends_where_the_budget_does(write: Write, compression: str) -> None:
    files = {**pictures.class_folders(), "labels.csv": b"a,b\n" * 999}
    packed = pictures.zipped(files) if compression == "zip" else pictures.tarred(files, compression=compression)
    path, names = write(packed), len(files) + 50

    def read(**budget: int) -> int:
        enough = {"names": names, "inflated_bytes": 1 << 20, "table_bytes": 4096}
        limits = Limits(budget=Budget(**{**enough, **budget}))
        result = read_archive(path, limits)
        return len(result.content(next(entry for entry in result.entries if entry.path == "labels.csv")))

    assert read() == 3996
    for short in ({"names": 3}, {"table_bytes": 3995}, *([{"inflated_bytes": 4096}] if compression == "gz" else [])):
        with pytest.raises(OverBudget):
            read(**short)


def test_C5_all_tables_that_are_read_count_together(write: Write) -> None:
    tables = {f"{n}.csv": b"x,y\n" + b"1,2\n" * 100 for n in range(4)}
    path = write(pictures.zipped({**pictures.class_folders(), **tables}))
    with pytest.raises(DatasetFormatError, match="with those before it"):
        resolve_labels(read_archive(path, Limits(table_bytes=1000)))


def test_leading_dots_of_a_packed_folder_are_no_names(write: Write) -> None:
    result = read_archive(write(pictures.tarred({"./": b"", "./cat/1.jpg": JPEG, "./dog/1.jpg": JPEG})))
    assert [entry.path for entry in result.entries] == ["cat/1.jpg", "dog/1.jpg"]


def test_zip64_is_read(write: Write) -> None:
    saturated = 0xFFFFFFFF
    extra = struct.pack("<HHQQ", 1, 16, len(JPEG), len(JPEG))
    raw = Raw(b"a/1.jpg", JPEG, size=saturated, stored=saturated, extra=extra)
    assert read_archive(write(hand_zip([raw]))).entries[0].image_bytes == len(JPEG)
    lying = Raw(**{**vars(raw), "local": {"extra": struct.pack("<HHQQ", 1, 16, len(JPEG), 7)}})
    assert refusal(write(hand_zip([lying]))).code == "ambiguous_archive"
    short = Raw(b"a/1.jpg", JPEG, size=saturated, stored=saturated, extra=extra[:-4])
    assert refusal(write(hand_zip([short]))).code == "bad_archive"


@pytest.mark.parametrize(
    "name",
    [
        "../x.jpg", "a/../../x.jpg", "a/..", "/etc/x.jpg", "//host/share/x.jpg", "C:/x.jpg", "c:x.jpg", "a\\b.jpg",
        "a/\x01.jpg", "a/\x7f.jpg", "a/\n.jpg", "a/\x85.jpg", "a/./b.jpg", "a//b.jpg", f"a/{'x' * 256}", "ä" * 128,
        "d/" * 16 + "x.jpg",
    ],
)  # fmt: skip
def test_Z1_unsafe_names_are_refused(write: Write, name: str) -> None:
    for data in both(name):
        result = refusal(write(data))
        assert (result.code, result.http_status) == ("unsafe_entry_name", 422)
        assert result.errors[0].pointer
        assert result.detail.isprintable()


@pytest.mark.parametrize("name", [b"a\0b.jpg", b"\xff\xfe.jpg", b"caf\xe9/1.jpg", b"\xed\xa0\x80.jpg"])
def test_Z1_undecodable_names_are_refused(write: Write, name: bytes) -> None:
    assert refusal(write(hand_zip([Raw(name, JPEG)]))).code == "unsafe_entry_name"


def test_Z1_the_longest_and_deepest_allowed_names_pass(write: Write) -> None:
    for name in ("x" * 255, "d/" * 15 + "x.jpg", "..hidden/...", "a b/-_+=%~.jpg", "日本/😀.jpg"):
        for data in both(name):
            assert [entry.path for entry in read_archive(write(data)).entries] == [name]


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o060666, 0o010644, 0o140755])
def test_Z2_links_and_devices_in_a_zip_are_refused(write: Write, mode: int) -> None:
    assert refusal(write(hand_zip([Raw(b"a/x.jpg", b"/etc/passwd", mode=mode)]))).code == "unsafe_entry_type"


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"V", b"Z"]
)
def test_Z2_links_and_devices_in_a_tar_are_refused(write: Write, kind: bytes) -> None:
    assert refusal(write(pictures.tarred_entry("a/x.jpg", kind, "/etc/passwd"))).code == "unsafe_entry_type"


@pytest.mark.parametrize(
    "pack", [pictures.zipped, pictures.tarred, lambda files: pictures.tarred(files, compression="gz")]
)
def test_Z3_limits_on_entries_and_bytes(write: Write, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    path = write(pack({f"a/{number}.jpg": bytes(1000) for number in range(9)}))
    assert len(read_archive(path, Limits(entries=9, entry_bytes=1000, total_bytes=9000)).entries) == 9
    for limits in ({"entries": 8}, {"entry_bytes": 999}, {"total_bytes": 8999}):
        result = refusal(path, **limits)
        assert (result.code, result.http_status) == ("archive_too_large", 413)


def test_Z3_bombs_are_refused_without_inflating_them(write: Write) -> None:
    bomb = bytes(60 << 20)
    lying = Raw(b"a/x.jpg", bomb, method=8, size=1000)
    honest = Raw(b"a/x.jpg", bomb, method=8)
    archives = [hand_zip([honest]), hand_zip([lying]), pictures.tarred({"a/x.jpg": bomb}, compression="gz")]
    del bomb
    for data in archives:
        path = write(data)
        tracemalloc.start()
        result = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result.code == "archive_too_large"
        assert peak < 8 << 20


def test_Z3_decompressing_counts_real_bytes(write: Write, tmp_path: Path) -> None:
    path = write(pictures.tarred({"a/x.jpg": bytes(30 << 20)}, compression="gz"))
    with pytest.raises(DatasetFormatError) as caught:
        decompress(path, tmp_path / "plain")
    assert caught.value.code == "archive_too_large"
    assert (tmp_path / "plain").stat().st_size < 8 << 20


@pytest.mark.parametrize(
    "pair",
    [
        ("a/x.jpg", "a/x.jpg"), ("a/x.jpg", "A/X.JPG"), ("ä.jpg", "a\u0308.jpg"), ("ß.jpg", "SS.jpg"),
        ("a", "a/x.jpg"), ("A", "a/b/x.jpg"),
    ],
)  # fmt: skip
def test_Z4_names_that_mean_one_file_are_refused(write: Write, pair: tuple[str, str]) -> None:
    for names in (pair, pair[::-1]):
        raws = [Raw(name.encode(), JPEG) for name in names]
        assert refusal(write(hand_zip(raws))).code == "ambiguous_archive"
        tar = b"".join(pictures.tarred({name: JPEG}, kind=tarfile.GNU_FORMAT)[:1536] for name in names) + bytes(1024)
        assert refusal(write(tar)).code == "ambiguous_archive"


@pytest.mark.parametrize(
    "local",
    [{"name": b"a/y.jpg"}, {"size": 1}, {"stored": 1}, {"crc": 1}, {"method": 8}, {"flags": 0x800}, {"size": 0}],
)
def test_Z4_local_header_and_directory_must_agree(write: Write, local: dict[str, Any]) -> None:
    assert refusal(write(hand_zip([Raw(b"a/x.jpg", JPEG, local=local)]))).code == "ambiguous_archive"


def test_Z4_a_header_that_leaves_sizes_to_the_descriptor_agrees(write: Write) -> None:
    raw = Raw(b"a/x.jpg", JPEG, flags=8, local={"size": 0, "stored": 0, "crc": 0})
    assert len(read_archive(write(hand_zip([raw]))).entries) == 1


def test_Z4_overlapping_entries_are_refused(write: Write) -> None:
    doubled = [Raw(b"a/x.jpg", JPEG), Raw(b"a/x.jpg", JPEG, offset=0)]
    assert refusal(write(hand_zip(doubled))).code == "ambiguous_archive"
    inner = hand_zip([Raw(b"b/y.jpg", JPEG)])
    nested = [Raw(b"a/x.jpg", inner), Raw(b"b/y.jpg", JPEG, offset=30 + len(b"a/x.jpg"))]
    assert refusal(write(hand_zip(nested))).code == "ambiguous_archive"


def test_Z4_two_ends_a_second_name_and_a_second_tar_are_refused(write: Write) -> None:
    hidden = hand_zip([Raw(b"b/y.jpg", JPEG)])
    assert refusal(write(hand_zip([Raw(b"a/x.jpg", JPEG)], comment=hidden))).code == "ambiguous_archive"
    second = struct.pack("<HHBL", 0x7075, 12, 1, 0) + b"b/y.jpg"
    assert refusal(write(hand_zip([Raw(b"a/x.jpg", JPEG, extra=second)]))).code == "ambiguous_archive"
    two = pictures.tarred({"a.jpg": JPEG}) + pictures.tarred({"b.jpg": JPEG})
    assert refusal(write(two)).code == "ambiguous_archive"


@pytest.mark.parametrize(
    "data", [b"", b"no archive", b"PK\3\4", b"PK\5\6" + bytes(10), b"\x1f\x8b", b"\x1f\x8b" + bytes(40)]
)
def test_Z5_what_is_no_archive_is_refused(write: Write, data: bytes) -> None:
    assert (result := refusal(write(data))).code == "bad_archive"
    assert result.http_status == 422


@pytest.mark.parametrize(
    "pack", [lambda: pictures.zipped(pictures.class_folders()), lambda: pictures.tarred(pictures.class_folders()),
             lambda: pictures.tarred(pictures.class_folders(), compression="gz")]
)  # fmt: skip
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_Z5_truncated_archives_are_refused(write: Write, pack: Callable[[], bytes], share: float) -> None:
    data = pack()
    if data[:2] == b"ca":  # tars end in blocks of zeros: cut before them
        data = data.rstrip(b"\0")
    assert refusal(write(data[: int(len(data) * share)])).code == "bad_archive"


@pytest.mark.parametrize("data", [b"x", b"\n", b"\0" * 30])
def test_Z5_bytes_around_a_zip_are_refused(write: Write, data: bytes) -> None:
    plain = pictures.zipped(pictures.class_folders())
    assert refusal(write(plain + data)).code == "bad_archive"
    assert refusal(write(hand_zip([Raw(b"a/x.jpg", JPEG)], before=b"PK\3\4" + data))).code == "bad_archive"


def test_Z5_encryption_and_odd_compression_are_named(write: Write) -> None:
    assert refusal(write(hand_zip([Raw(b"a/x.jpg", JPEG, flags=1)]))).code == "encrypted_archive"
    assert refusal(write(hand_zip([Raw(b"a/x.jpg", JPEG, method=99)]))).code == "encrypted_archive"
    for method, name in ((9, "deflate64"), (12, "bzip2"), (14, "lzma"), (77, "77")):
        result = refusal(write(hand_zip([Raw(b"a/x.jpg", JPEG, method=method)])))
        assert result.code == "bad_archive"
        assert name in result.detail


def test_Z5_a_damaged_table_is_refused_by_its_crc(write: Write) -> None:
    result = read_archive(write(hand_zip([Raw(b"labels.csv", b"file,label\n", crc=1)])))
    with pytest.raises(DatasetFormatError, match="damaged"):
        result.content(result.entries[0])


def test_Z5_a_damaged_zstd_stream_is_refused(write: Write) -> None:
    whole = pictures.tarred(pictures.class_folders(), compression="zst")
    for data in (b"\x28\xb5\x2f\xfd" + bytes(30), whole[: len(whole) // 2]):
        assert refusal(write(data)).code == "bad_archive"


def test_Z3_very_many_empty_zstd_frames_are_refused(write: Write) -> None:
    data = pictures.tarred({"a/1.jpg": b"x"}, compression="zst")
    assert len(read_archive(write(data + pictures.EMPTY_ZSTD_FRAME * 10)).entries) == 1
    assert refusal(write(data + pictures.EMPTY_ZSTD_FRAME * MAX_ZSTD_FRAMES)).code == "archive_too_large"


def test_Z5_a_wrong_entry_count_is_refused(write: Write) -> None:
    for count in (0, 2, 500):
        assert refusal(write(hand_zip([Raw(b"a/x.jpg", JPEG)], count=count))).code == "bad_archive"


def test_Z10_modes_and_owners_are_ignored(write: Write) -> None:
    raws = [Raw(b"a/x.jpg", JPEG, mode=mode) for mode in (0o104777, 0, 0o100000)]
    for raw in raws:
        assert len(read_archive(write(hand_zip([raw]))).entries) == 1


# --- hostile bytes ------------------------------------------------------------------------------------------------

small = st.integers(0, 70_000) | st.sampled_from([0xFFFF, 0xFFFFFFFF])
names = st.sampled_from([b"a/x.jpg", b"a/y.jpg", b"a", b"b/", b"A/X.jpg", b"../x"]) | st.binary(max_size=12)
raws = st.builds(
    Raw,
    name=names,
    data=st.binary(max_size=40),
    method=st.sampled_from([0, 0, 8, 9]),
    flags=st.sampled_from([0, 0, 8, 1, 0x800]),
    mode=st.sampled_from([0, 0o100644, 0o120777]),
    size=st.none() | small,
    stored=st.none() | small,
    crc=st.none() | small,
    extra=st.just(b"") | st.binary(max_size=30),
    offset=st.none() | small,
    local=st.none()
    | st.fixed_dictionaries({}, optional={"size": small, "stored": small, "name": names, "method": st.just(8)}),
)


def accepted(path: Path) -> Archive | None:
    """None for a refusal; any other exception is a bug."""
    try:
        return read_archive(path, Limits(entries=50, total_bytes=1 << 20))
    except DatasetFormatError:
        return None


def require_sound(result: Archive) -> None:
    """What may be relied on: files apart from each other, inside the container, under different safe names."""
    size = result.path.stat().st_size
    spans = sorted((entry.offset, entry.offset + entry.stored_bytes) for entry in result.entries)
    ends = [0, *(end for _, end in spans)]
    assert all(start >= end for (start, _), end in zip(spans, ends, strict=False))
    assert ends[-1] <= size
    names = [entry.path for entry in result.entries]
    assert len({name.casefold() for name in names}) == len(names)
    assert not any(".." in name.split("/") or name.startswith("/") or "\\" in name for name in names)


shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)


def test_a_name_of_one_character_is_refused_the_second_time(write: Write) -> None:
    """Such texts are one object in memory, however often they are read."""
    with pytest.raises(DatasetFormatError, match="appears twice"):
        read_archive(write(hand_zip([Raw(name=b"a", data=b""), Raw(name=b"a", data=b"")])))


@shared
@given(entries=st.lists(raws, max_size=4), count=st.none() | st.integers(0, 9), comment=st.binary(max_size=30))
def test_hand_built_zips_are_sound_or_refused(
    write: Write, entries: list[Raw], count: int | None, comment: bytes
) -> None:
    data = hand_zip(
        [Raw(**{**vars(raw), "crc": (raw.crc or 0) & 0xFFFFFFFF}) for raw in entries], count=count, comment=comment
    )
    if (result := accepted(write(data))) is not None:
        require_sound(result)


@shared
@given(
    base=st.sampled_from(["zip", "deflated", "tar", "gz"]),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_bytes_changed_anywhere_are_sound_or_refused(write: Write, base: str, changes: list[tuple[int, int]]) -> None:
    files = {"a/1.jpg": b"x" * 50, "b/2.jpg": b"y" * 700, "labels.csv": b"file,label\n"}
    data = {
        "zip": lambda: pictures.zipped(files),
        "deflated": lambda: pictures.zipped(files, deflated=True),
        "tar": lambda: pictures.tarred(files),
        "gz": lambda: pictures.tarred(files, compression="gz"),
    }[base]()
    broken = bytearray(data)
    for position, value in changes:
        # Half of the changes hit the last bytes, where a zip keeps its directory.
        broken[-1 - position % 200 if position % 2 and base in ("zip", "deflated") else position % len(broken)] = value
    result = accepted(write(bytes(broken)))
    if result is not None and not result.compression:
        require_sound(result)


@shared
@given(data=st.binary(max_size=600), start=st.sampled_from([b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08"]))
def test_random_bytes_are_refused(write: Write, data: bytes, start: bytes) -> None:
    result = accepted(write(start + data))
    assert result is None or not result.entries


def test_reading_leaves_crc_to_ingest(write: Write) -> None:
    """One bad CRC costs one image, not the archive (Z5): here it is only handed on."""
    result = read_archive(write(hand_zip([Raw(b"a/x.jpg", JPEG, crc=7)])))
    assert result.entries[0].crc == 7 != zlib.crc32(JPEG)
