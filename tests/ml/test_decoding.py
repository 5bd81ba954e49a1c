"""Bytes to upright RGB: the rules IMG1-IMG5, and one answer whichever decoder is taken."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ml.data import decoding, image_headers
from ml.data.decoding import Geometry
from ml.errors import UndecodableImage
from tests import pictures

ROOT = Path(__file__).parents[2]


def refusal(data: bytes) -> str:
    with pytest.raises(UndecodableImage) as caught:
        decoding.decode(data)
    return caught.value.code


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_IMG1_the_five_formats_are_recognised_by_content(kind: str) -> None:
    data = pictures.encoded(3, 13, 7, kind=kind)
    assert image_headers.header(data) == (13, 7, kind)
    assert decoding.decode(data).shape == (7, 13, 3)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "PDF", "EPS"])
def test_IMG1_other_formats_are_refused_whatever_pillow_can_read(kind: str) -> None:
    assert refusal(pictures.encoded(1, 16, 16, kind=kind)) == "unsupported_format"


@pytest.mark.parametrize(
    "data", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"SIMPLE  =", b"8BPS\0\1", b"GIF", b"x"]
)
def test_IMG1_what_is_no_picture_is_refused(data: bytes) -> None:
    assert refusal(data) == "unsupported_format"


@pytest.mark.parametrize("size", [(10_001, 1), (1, 10_001), (5001, 5000), (65535, 65535), (2**31 - 1, 2**31 - 1)])
def test_IMG2_limits_hold_before_anything_is_decoded(size: tuple[int, int]) -> None:
    assert refusal(png_header(*size)) == "image_too_large"


@pytest.mark.parametrize("side", [(20_000, 8), (8, 20_000), (6000, 6000)])
def test_IMG2_a_frame_that_enlarges_a_gif_is_within_the_limits_too(side: tuple[int, int]) -> None:
    data = bytearray(pictures.encoded(1, kind="GIF"))
    frame = data.index(b"," + struct.pack("<4H", 0, 0, 8, 8))
    data[frame + 5 : frame + 9] = struct.pack("<2H", *side)
    assert refusal(bytes(data)) == "image_too_large"


def test_IMG2_a_long_text_chunk_is_refused() -> None:
    plain = pictures.encoded(1, kind="PNG")
    body = b"tEXt" + b"a\0" + b"b" * image_headers.MAX_TEXT_BYTES
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    assert decoding.decode(plain).shape == (8, 8, 3)
    assert refusal(plain[:33] + chunk + plain[33:]) == "image_too_large"


def jpeg_of_scans(scans: int, *, progressive: bool, after: bytes = b"") -> bytes:
    """A grey JPEG of 16x16 pixels whose scans hold nothing, each of a few bytes."""
    frame = struct.pack(">BBHBHHB", 0xFF, 0xC2 if progressive else 0xC0, 11 if progressive else 17, 8, 16, 16, 1)
    if not progressive:
        frame = frame[:-1] + b"\3" + bytes((1, 0x11, 0, 2, 0x11, 0)) + bytes((3, 0x11, 0))
    else:
        frame += bytes((1, 0x11, 0))
    tables = b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1] * 64)
    for kind, symbol in ((0x00, 0), (0x10, 0)):
        tables += b"\xff\xc4" + struct.pack(">HB", 20, kind) + bytes([1] + [0] * 15) + bytes([symbol])
    first = b"\xff\xda" + bytes((0, 8, 1, 1, 0x00, 0, 0 if progressive else 63, 0)) + b"\0"
    more = b"\xff\xda" + bytes((0, 8, 1, 1, 0x00, 1, 63, 0)) + b"\0" if progressive else first
    return b"\xff\xd8" + tables + frame + first + more * (scans - 1) + b"\xff\xd9" + after


@pytest.mark.parametrize("progressive", [True, False])
def test_IMG2_a_jpeg_of_many_scans_is_refused(progressive: bool) -> None:
    most = image_headers.MAX_SCANS
    assert image_headers.header(jpeg_of_scans(most, progressive=progressive)) == (16, 16, "JPEG")
    # What follows the end is not part of it.
    assert image_headers.header(jpeg_of_scans(3, progressive=progressive, after=b"\xff\xda" * 2 * most))
    many = jpeg_of_scans(most + 1, progressive=progressive)
    assert refusal(many) == "image_too_large"
    # In place, a baseline picture is decoded that has the data of every scan: the time is that of its bytes.
    assert not progressive or not decoding.decode_into(many, np.zeros((16, 16, 3), np.uint8))


def test_IMG2_ordinary_progressive_pictures_are_decoded() -> None:
    file = io.BytesIO()
    Image.fromarray(pictures.pixels(5, 40, 30)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    assert data.count(b"\xff\xda") > 5
    assert np.array_equal(decoding.decode(data), by_pillow(data))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_IMG2_only_the_first_frame_counts(kind: str) -> None:
    frames = [Image.fromarray(pictures.pixels(0, hue=hue)) for hue in (0, 3)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    colour = decoding.decode(file.getvalue()).mean((0, 1))
    assert np.abs(colour - pictures.pixels(0, hue=0).mean((0, 1))).max() < 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
        ("JPEG", "CMYK"),
        ("JPEG", "RGB"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
        ("GIF", "P"),
    ],
)
def test_IMG2_the_largest_picture_needs_less_than_300_MiB(kind: str, mode: str, tmp_path: Path) -> None:
    """Peak of a fresh process, libraries included."""
    file = tmp_path / "large"
    side = 3872 if kind == "WEBP" else 5000
    Image.new(mode, (side, side)).save(file, kind)
    program = f"""
from pathlib import Path
from ml.data import decoding
assert decoding.decode(open({str(file)!r}, "rb").read()).shape == ({side}, {side}, 3)
status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with the parent's
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(output.stdout) <= 300


@pytest.mark.parametrize("kind", pictures.FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_IMG3_truncated_pictures_are_refused(kind: str, share: float) -> None:
    data = pictures.encoded(5, 64, 64, kind=kind)
    assert refusal(data[: int(len(data) * share)]) in ("damaged_image", "empty_file", "unsupported_format")


def test_IMG3_a_png_without_its_end_is_accepted_as_long_as_every_pixel_is_there() -> None:
    data = pictures.encoded(4, 24, 18, kind="PNG")
    end = len(data) - 20  # without the last chunk, the checksums, and nothing that a pixel needs
    assert np.array_equal(decoding.decode(data[:end]), decoding.decode(data))
    assert np.array_equal(by_pillow(data[:end]), by_pillow(data))
    assert refusal(data[: end - 60]) == "damaged_image"


def test_IMG3_a_jpeg_is_refused_exactly_where_pillow_refuses_it() -> None:
    """The fast decoder is stricter; where it complains, Pillow decides, so both paths give one answer."""
    data = pictures.encoded(7, 24, 24)
    answers = set()
    for position in range(2, len(data), 3):
        broken = data[:position] + bytes([data[position] ^ 0x15]) + data[position + 1 :]
        try:
            expected = by_pillow(broken) if image_headers.header(broken) else None
        except (UndecodableImage, OSError, SyntaxError, ValueError, struct.error):
            expected = None
        try:
            decoded = decoding.decode(broken)
        except UndecodableImage:
            decoded = None
        answers.add(expected is None)
        assert (decoded is None) == (expected is None), position
    assert answers == {True, False}


@given(st.binary(max_size=200), st.sampled_from(pictures.FORMATS), st.integers(0, 400))
def test_IMG3_no_damage_raises_anything_else(noise: bytes, kind: str, at: int) -> None:
    data = pictures.encoded(2, 12, 12, kind=kind)
    data = data[:at] + noise + data[at + len(noise) :]
    try:
        picture = decoding.decode(data)
    except UndecodableImage:
        return
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", m) for m in ("1", "L", "LA", "P", "RGBA", "I;16")]
    + [("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGBA"), ("GIF", "P"), ("BMP", "1"), ("BMP", "L"), ("BMP", "P")],
)
def test_IMG4_every_mode_becomes_rgb(kind: str, mode: str) -> None:
    data = pictures.encoded(4, 9, 6, kind=kind, mode=mode)
    decoded = decoding.decode(data)
    assert decoded.shape == (6, 9, 3)
    if mode == "I;16":
        data = pictures.encoded(4, 9, 6, kind=kind, mode="L")
    np.testing.assert_array_equal(decoded, by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("WEBP", "RGB")])
def test_IMG4_exif_orientation_is_applied_by_every_decoder(kind: str, mode: str, orientation: int) -> None:
    data = pictures.encoded(6, 11, 5, kind=kind, mode=mode, orientation=orientation)
    np.testing.assert_array_equal(decoding.decode(data), by_pillow(data))


def test_IMG4_nonsense_in_exif_is_no_orientation() -> None:
    for exif in (
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II*\0" + b"\x08" * 40,
    ):
        assert image_headers.orientation(exif) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_IMG5_extreme_shapes_are_accepted(size: tuple[int, int], kind: str, resize: decoding.Resize) -> None:
    picture = decoding.decode(pictures.encoded(1, *size, kind=kind))
    assert picture.shape[:2] == size[::-1]
    assert decoding.resize(picture, Geometry(*size, 32, resize)).shape == (32, 32, 3)


def test_the_fast_decoder_gives_pillows_pixels() -> None:
    for seed, (width, height) in enumerate([(8, 8), (17, 31), (64, 48), (33, 1)]):
        data = pictures.encoded(seed, width, height)
        np.testing.assert_array_equal(decoding.decode(data), by_pillow(data))


def test_decoding_in_place_takes_only_upright_jpeg_of_the_exact_size() -> None:
    target = np.zeros((8, 8, 3), np.uint8)
    assert decoding.decode_into(pictures.encoded(1, 8, 8), target)
    np.testing.assert_array_equal(target, simplejpeg.decode_jpeg(pictures.encoded(1, 8, 8)))
    others = [pictures.encoded(1, 4, 8), pictures.encoded(1, 16, 4), pictures.encoded(1, 32, 32)]
    others += [pictures.encoded(1, 8, 8, orientation=6), pictures.encoded(1, 8, 8, kind="PNG")]
    others += [pictures.encoded(1, 8, 8, mode="CMYK"), pictures.encoded(1, 8, 8)[:-30], b""]
    assert [decoding.decode_into(data, target) for data in others] == [False] * len(others)


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 224), st.sampled_from(["squash", "crop"]),
    st.tuples(st.floats(-100, 5100), st.floats(-100, 5100)),
)  # fmt: skip
def test_geometry_inverts_itself(
    width: int, height: int, size: int, resize: decoding.Resize, point: tuple[float, float]
) -> None:
    geometry = Geometry(width, height, size, resize)
    np.testing.assert_allclose(geometry.inverse(geometry.forward(np.array(point))), point, atol=1e-6)
    left, top, right, bottom = geometry.box
    corners = geometry.forward(np.array([[left, top], [right, bottom]]))
    np.testing.assert_allclose(corners, [[0, 0], [size, size]], atol=1e-6)
    assert left >= 0
    assert right <= width
    assert top >= 0
    assert bottom <= height


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_resize_puts_a_spot_where_forward_says(resize: decoding.Resize) -> None:
    picture = np.zeros((200, 300, 3), np.uint8)
    picture[90:110, 170:190] = 255
    geometry = Geometry(300, 200, 60, resize)
    weights = decoding.resize(picture, geometry)[..., 0].astype(float)
    rows, columns = np.indices(weights.shape) + 0.5
    centre = [(columns * weights).sum() / weights.sum(), (rows * weights).sum() / weights.sum()]
    np.testing.assert_allclose(centre, geometry.forward(np.array([180.0, 100.0])), atol=0.1)
