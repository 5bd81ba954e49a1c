"""Headers of images: the size that is checked is the one that decoders see, and pixels within the limits come out.

Pillow may see another size: a frame enlarges a GIF, and a second header counts in a PNG or JPEG. Then the limits hold
for that size as well, and a JPEG is refused.
"""

from __future__ import annotations

import io
import warnings

import simplejpeg
from PIL import Image

from ml.data import decoding, image_headers
from ml.errors import UndecodableImage
from tests.fuzz.targets import refusal

CODES = {"empty_file", "damaged_image", "unsupported_format", "image_too_large"}
DECODED_PIXELS = 1 << 12  # larger pictures would only take time


def check(data: bytes) -> bool:
    try:
        header = image_headers.header(data)
    except UndecodableImage as error:
        refusal(error, CODES)
        return False
    size = (header.width, header.height)
    assert min(size) > 0
    assert is_allowed(size)
    if header.format == "JPEG":
        assert 1 <= image_headers.orientation(image_headers.jpeg_exif(data)) <= 8
    with warnings.catch_warnings(action="ignore"):  # of what is odd in a file; only what is decoded counts
        seen = sizes(data, header.format)
        if not seen <= {size}:
            assert header.format in ("GIF", "PNG") or pixels(data) in CODES, (seen, size)
        if not all(map(is_allowed, seen)):
            assert pixels(data) == "image_too_large"
        elif max(width * height for width, height in seen | {size}) <= DECODED_PIXELS:
            assert pixels(data) in {*CODES, *seen, size, size[::-1]}
    return True


def is_allowed(size: tuple[int, int]) -> bool:
    return max(size) <= image_headers.MAX_SIDE and size[0] * size[1] <= image_headers.MAX_PIXELS


def sizes(data: bytes, kind: str) -> set[tuple[int, int]]:
    """The size before any pixel is decoded, by each decoder that takes the file."""
    seen = set()
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as picture:
            seen.add(picture.size)
    except decoding._PILLOW_ERRORS:
        pass
    if kind == "JPEG":
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            seen.add((width, height))
        except ValueError:
            pass
    return seen


def pixels(data: bytes) -> tuple[int, int] | str:
    """Width and height of what is decoded, or the code of the refusal."""
    try:
        height, width, channels = decoding.decode(data).shape
    except UndecodableImage as error:
        return refusal(error, CODES)
    assert channels == 3
    return width, height
