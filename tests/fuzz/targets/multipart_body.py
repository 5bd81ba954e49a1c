"""multipart/form-data: the parts do not depend on the chunks, nor on which of our two readers takes the body.

The first line of an input is the Content-Type, and the first byte of the body that follows chooses the chunks.
"""

from __future__ import annotations

from collections.abc import Iterable

from app.errors import Malformed, TooLarge
from app.http.multipart import MultipartReader, PartBegin, PartData, PartEnd, single_part
from tests.fuzz.targets.frame_decoder import chunks

MOST_PARTS = 4
NamedContent = tuple[PartBegin, bytes]


def check(data: bytes) -> bool:
    first, _, body = data.partition(b"\n")
    content_type = first.decode("latin-1")
    parts = parse(content_type, [body])
    assert parse(content_type, chunks(body[:1], body)) == parts
    assert parse(content_type, (body[at : at + 1] for at in range(len(body)))) == parts
    try:
        single = single_part(content_type, body)
    except Malformed:
        assert parts is None
    else:
        assert single is None or parts == [single]
    return bool(parts)


def parse(content_type: str, pieces: Iterable[bytes]) -> list[NamedContent] | None:
    """The parts with their contents; None for a body that is refused."""
    parts: list[NamedContent] = []
    is_open = False
    try:
        reader = MultipartReader(content_type, most=MOST_PARTS)
        events = [event for piece in pieces for event in reader.feed(piece)]
        reader.close()
    except (Malformed, TooLarge):
        return None
    for event in events:
        assert isinstance(event, PartBegin) != is_open
        if isinstance(event, PartBegin):
            parts.append((event, b""))
        elif isinstance(event, PartData):
            parts[-1] = (parts[-1][0], parts[-1][1] + event.data)
        is_open = not isinstance(event, PartEnd)
    assert not is_open
    assert len(parts) <= MOST_PARTS
    return parts
