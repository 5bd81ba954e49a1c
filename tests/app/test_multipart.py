"""The short way through a form with one part says what the parser says, or nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.errors import Problem
from app.http.multipart import MultipartReader, PartBegin, PartData, single_part

KIND = "multipart/form-data; boundary=edge"
NAMED = b'Content-Disposition: form-data; name="file"; filename="a.jpg"'
PIECES = [
    b"--edge", b"\r\n", b"--", NAMED, b"Content-Type: image/jpeg", b"content-type:x", b"picture", b": ", b" ", b"\n",
    b"\r\n\r\n", b"edge", b"\x00\xff", b'Content-Disposition: form-data; name="model"', b"\t",
]  # fmt: skip


def form(data: bytes, *headers: bytes) -> bytes:
    return b"--edge\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + data + b"\r\n--edge--\r\n"


def parsed(*chunks: bytes) -> list[tuple[PartBegin, bytes]] | None:
    """All parts, or None where the parser refuses."""
    reader, parts = MultipartReader(KIND), list[tuple[PartBegin, bytes]]()
    try:
        for event in (event for chunk in chunks for event in reader.feed(chunk)):
            if isinstance(event, PartBegin):
                parts.append((event, b""))
            elif isinstance(event, PartData):
                parts[-1] = (parts[-1][0], parts[-1][1] + event.data)
        reader.close()
    except Problem:
        return None
    return parts


def without_parser(body: bytes) -> tuple[PartBegin, bytes] | None:
    try:
        return single_part(KIND, body)
    except Problem:
        assert parsed(body) is None
        return None


def test_an_upload_of_one_picture_needs_no_parser() -> None:
    body = form(b"\xff\xd8 bytes \r\n-- and more", NAMED, b"Content-Type: image/jpeg")

    assert single_part(KIND, body) == (PartBegin("file", "a.jpg", "image/jpeg"), b"\xff\xd8 bytes \r\n-- and more")
    assert parsed(body) == [single_part(KIND, body)]


def test_newlines_before_the_first_boundary_hide_nothing_in_whatever_chunks_they_come() -> None:
    one = form(b"x", NAMED)

    for before in (b"\r\n", b"\n\n\r\n"):
        assert parsed(before + one) == parsed(before[:1], before[1:], one) == parsed(one)
    for before in (b"\r\nhidden\r\n", b"\n\0"):
        assert parsed(before + one) is parsed(before[:1], before[1:], one) is None


def test_forms_of_any_other_shape_are_left_to_the_parser() -> None:
    one = form(b"x", NAMED)

    assert single_part(KIND, one.removesuffix(b"--\r\n") + b"\r\n" + NAMED + b"\r\n\r\ny\r\n--edge--\r\n") is None
    assert single_part(KIND, b"preamble\r\n" + one) is None
    assert single_part(KIND, one + b"epilogue") is None
    assert single_part(KIND, one[:-8]) is None
    assert single_part(KIND, form(b"x", NAMED, b" folded: line")) is None
    assert single_part(KIND, b"--edge\r\n" + NAMED + b"\r\n\r\n--edge--\r\n") is None


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
def test_the_reader_without_a_parser_agrees_with_the_parser_on_any_bytes(middle: bytes) -> None:
    for body in (middle, form(middle, NAMED), b"--edge\r\n" + middle + b"\r\n--edge--\r\n"):
        part = without_parser(body)
        assert part is None or parsed(body) == [part]
