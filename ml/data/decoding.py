"""Decodes image files to upright RGB, and resizes images to the square that a network sees.

Training and prediction use the same code. The format follows from the content, never from a name or a declared type,
and only the first frame counts. Sizes are checked in the header (`ml.data.image_headers`) before a decoder allocates
memory.

Shapes: images are uint8 (H, W, 3); points are (..., 2) as (x, y) in continuous pixels, pixel i covering [i, i + 1).
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ml.data.image_headers import JPEG_START, Header, check_size, header, jpeg_exif, orientation
from ml.errors import UndecodableImage

Resize = Literal["squash", "crop"]
ImageArray = NDArray[np.uint8]

# Modes are converted strip by strip: a whole RGBA picture beside its RGB copy would double the peak.
STRIP_PIXELS = 1 << 20

# A baseline frame of 8 bits with one or three components. CMYK has four, and its own conversion; the scans of a
# progressive one are counted first.
_ordinary = re.compile(rb"\xff\xc0\0[\x0b\x11]\x08").search

# What Pillow raises for damaged files, collected over its decoders: nearly anything but a crash.
_PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError,
    struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


def decode(data: bytes) -> ImageArray:
    """The first frame of an image file as upright RGB, uint8 (H, W, 3); raises UndecodableImage."""
    parsed = header(data)
    if parsed.format == "JPEG":
        pixels = _fast_jpeg(data)
        if pixels is not None:
            return pixels if b"Exif\0\0" not in data else _upright(pixels, orientation(jpeg_exif(data)))
    return _pillow(data, parsed)


def decode_into(data: bytes, target: ImageArray) -> bool:
    """Decode an ordinary JPEG of exactly the target's size (S, S, 3) into it; False means: take `decode`.

    The short way of ingest: no second array. The target's size is the limit, so no header is read before.
    """
    if not data.startswith(JPEG_START) or b"Exif\0\0" in data or not _ordinary(data):
        return False
    try:
        decoded: ImageArray = simplejpeg.decode_jpeg(data, buffer=target)  # refuses what is larger, and any warning
    except ValueError:
        return False
    return decoded.shape == target.shape


def _fast_jpeg(data: bytes) -> ImageArray | None:
    """Baseline and progressive JPEG at three to seven times Pillow's speed, or None where Pillow has to decide."""
    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in ("YCbCr", "Gray", "RGB"):
            return None
        pixels: ImageArray = simplejpeg.decode_jpeg(data)  # strict: any warning of the decoder is an error
    except ValueError:
        return None
    return pixels


def _pillow(data: bytes, expected: Header) -> ImageArray:
    try:
        with Image.open(io.BytesIO(data), formats=[expected.format]) as picture:
            # A GIF frame may be larger than the screen it announced, and a PNG may have a second header.
            check_size(picture.width, picture.height, expected.format)
            picture.load()
            orientation_code = orientation(picture.info.get("exif"))
            return _upright(_rgb(picture), orientation_code)
    except _PILLOW_ERRORS as error:
        raise UndecodableImage("damaged_image", f"the {expected.format} cannot be decoded: {error}"[:200]) from error


def _rgb(picture: Image.Image) -> ImageArray:
    """Any mode to RGB. Transparency is dropped as ImageFolder drops it; 16 bits keep their upper eight."""
    picture.info.clear()  # a palette's transparency would only raise a warning
    width, height = picture.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = picture if rows >= height else picture.crop((0, top, width, min(top + rows, height)))
        if strip.mode.startswith("I"):
            pixels[top : top + rows] = (np.asarray(strip) >> 8).clip(0, 255)[..., None]
        else:
            pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _upright(pixels: ImageArray, orientation_code: int) -> ImageArray:
    """Undo the rotation and mirroring that the EXIF orientation `orientation_code` describes."""
    if orientation_code == 1:
        return pixels
    if orientation_code >= 5:  # 5..8 are stored with rows and columns exchanged
        pixels = pixels.transpose(1, 0, 2)
    if orientation_code in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation_code in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class Geometry:
    """How an image lies in the square that a network sees.

    Attributes:
        width, height: Of the image, in pixels.
        size: Pixels of a side of the square.
        resize: squash: the whole image, aspect ratio lost; crop: its central square.
    """

    width: int
    height: int
    size: int
    resize: Resize

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part of the picture that the square shows: x0, y0, x1, y1 in original pixels."""
        if self.resize == "squash":
            return 0.0, 0.0, float(self.width), float(self.height)
        side = min(self.width, self.height)
        left, top = (self.width - side) / 2, (self.height - side) / 2
        return left, top, left + side, top + side

    @property
    def scale(self) -> tuple[float, float]:
        """Square pixels per original pixel, along x and y."""
        left, top, right, bottom = self.box
        return self.size / (right - left), self.size / (bottom - top)

    def forward(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of the picture as points of the square."""
        return (np.asarray(points, np.float64) - self.box[:2]) * self.scale

    def inverse(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of the square as points of the picture."""
        return np.asarray(points, np.float64) / self.scale + self.box[:2]


def resize(image: ImageArray, geometry: Geometry) -> ImageArray:
    """The square that a network sees, uint8 (S, S, 3): antialiased bilinear, exact where nothing changes."""
    side = geometry.size
    if image.shape[:2] == (side, side):
        return image
    square = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=geometry.box)
    return np.asarray(square)
