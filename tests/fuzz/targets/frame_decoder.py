"""Frames between API and inference process: the frames do not depend on how the stream is cut into chunks.

The first byte of an input chooses the chunks.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from app.predictions.frames import HEADER_BYTES, BadFrame, Frame, FrameParser, encode

MOST_BYTES = 1 << 12


def check(data: bytes) -> bool:
    seed, stream = data[:1], data[1:]
    frames, ending = parse(chunks(seed, stream))
    for other, other_ending in (parse([stream]), parse(stream[at : at + 1] for at in range(len(stream)))):
        assert other_ending == ending
        if ending != "bad":
            assert repr(other) == repr(frames)  # NaN is not equal to itself
    for frame in frames:
        assert list(map(len, frame.parts)) == frame.header["sizes"]
        assert sum(map(len, frame.parts)) <= MOST_BYTES
        check_encoding(frame)
    return ending == "complete" and bool(frames)


def chunks(seed: bytes, stream: bytes) -> Iterator[bytes]:
    dice = random.Random(seed)
    while stream:
        size = dice.choice((1, 2, 7, 64, 1000))
        yield stream[:size]
        stream = stream[size:]


def parse(pieces: Iterable[bytes]) -> tuple[list[Frame], str]:
    """The frames, and how the stream ends: complete, partial or bad."""
    parser = FrameParser(MOST_BYTES)
    frames: list[Frame] = []
    for piece in pieces:
        try:
            frames += parser.feed(piece)
        except BadFrame:
            return frames, "bad"
        assert parser.completed == len(frames)
        assert parser.unfinished_bytes <= HEADER_BYTES + MOST_BYTES
    return frames, "partial" if parser.is_partial else "complete"


def check_encoding(frame: Frame) -> None:
    """A frame that is encoded again is read as it was, unless it holds a number that is not finite."""
    try:
        buffers = encode(frame.header, frame.parts)
    except ValueError:
        assert any(word in repr(frame.header) for word in ("nan", "inf"))
        return
    again, ending = parse([b"".join(buffers)])
    assert (ending, repr(again)) == ("complete", repr([frame]))
