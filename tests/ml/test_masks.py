"""Masks: every form describes the same pixels, and a location survives resizing, cropping and EXIF orientation."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from ml.data import decoding
from ml.data.decoding import Geometry
from ml.evaluation import masks
from ml.evaluation.masks import Gaussian

sides = st.integers(8, 300)
shares = st.floats(0.2, 0.8)


@given(sides, sides, st.sampled_from([16, 32, 97]), st.sampled_from(["squash", "crop"]), shares, shares, shares)
@settings(max_examples=80)
def test_a_location_in_the_square_returns_from_the_image(
    width: int, height: int, size: int, resize: decoding.Resize, x: float, y: float, sigma: float
) -> None:
    geometry = Geometry(width, height, size, resize)
    location = (x * size, y * size, sigma * size)

    there = Gaussian.from_square(*location, geometry)
    back = geometry.forward(np.array([there.cx, there.cy])) - 0.5
    assert [*back, *np.multiply(geometry.scale, (there.sigma_x, there.sigma_y))] == pytest.approx(
        [*location, location[2]]
    )
    if resize == "squash":
        assert there.sigma_x / width == pytest.approx(there.sigma_y / height)
    else:
        assert there.sigma_x == pytest.approx(there.sigma_y)


@given(
    st.integers(1, 8), st.sampled_from(["squash", "crop"]), shares, shares, st.integers(60, 160), st.integers(60, 160)
)
@settings(max_examples=40)
def test_a_bright_spot_is_found_where_it_is_whatever_orientation_and_resize(
    orientation: int, resize: decoding.Resize, x: float, y: float, width: int, height: int
) -> None:
    """Draw a spot in a stored picture; decode, shrink, measure it in the square, and go back to the upright picture."""
    yy, xx = np.mgrid[0:height, 0:width]
    stored = 255 * np.exp(-((xx - x * width) ** 2 + (yy - y * height) ** 2) / (2 * 6.0**2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(stored.round().astype(np.uint8)).convert("RGB").save(file, "PNG", exif=exif)

    upright = decoding.decode(file.getvalue())
    geometry = Geometry(upright.shape[1], upright.shape[0], 32, resize)
    square = decoding.resize(upright, geometry)[:, :, 0].astype(np.float64)
    peak_y, peak_x = np.unravel_index(square.argmax(), square.shape)
    if min(peak_x, peak_y) < 2 or max(peak_x, peak_y) > 29:
        return  # the crop cut the spot off
    gaussian = Gaussian.from_square(float(peak_x), float(peak_y), 3.0, geometry)
    true_y, true_x = np.unravel_index(upright[:, :, 0].argmax(), upright.shape[:2])
    tolerance = 1.6 * max(1 / geometry.scale[0], 1 / geometry.scale[1])  # a pixel of the square, and rounding
    assert math.hypot(gaussian.cx - (true_x + 0.5), gaussian.cy - (true_y + 0.5)) < tolerance * math.sqrt(2)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode, numpy 2
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.floats(-20, 80),
    st.floats(-20, 80),
    st.floats(0.3, 60),
    st.floats(0.3, 60),
    st.floats(0.05, 0.95),
)
@settings(max_examples=150)
def test_every_form_describes_the_same_pixels(
    width: int, height: int, cx: float, cy: float, sx: float, sy: float, threshold: float
) -> None:
    gaussian = Gaussian(cx, cy, sx, sy)
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    value = np.exp(-(((columns - cx) / sx) ** 2 + ((rows - cy) / sy) ** 2) / 2)
    unsure = np.abs(value - threshold) < 1e-9

    described = masks.describe(gaussian, width, height, threshold=threshold, kinds=masks.KINDS)
    inside = masks.raster(gaussian, width, height, threshold)
    decoded = coco.decode({"size": described["rle"]["size"], "counts": described["rle"]["counts"].encode()})
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(described["png"]))))
    assert ((inside == (value >= threshold)) | unsure).all()
    assert (decoded == inside).all()
    assert ((picture == 255) == inside).all()
    assert described["area_fraction"] == pytest.approx(inside.mean())
    left, top, across, down = described["bbox"]
    assert left >= 0
    assert top >= 0
    assert left + across <= width + 1e-9
    assert top + down <= height + 1e-9
    if inside.any():
        ys, xs = inside.nonzero()
        assert left <= xs.min() + 0.5
        assert xs.max() + 0.5 <= left + across + 1e-9
        assert top <= ys.min() + 0.5
        assert ys.max() + 0.5 <= top + down + 1e-9


def test_the_json_is_the_one_of_the_api() -> None:
    gaussian = Gaussian(cx=301.5, cy=220.0, sigma_x=96.2, sigma_y=72.1)

    described = masks.describe(gaussian, 640, 480, kinds=("gaussian", "rle"))
    assert list(described) == ["space", "gaussian", "bbox", "threshold", "area_fraction", "rle"]
    assert described["gaussian"] == {"cx": 301.5, "cy": 220.0, "sigma_x": 96.2, "sigma_y": 72.1}
    assert described["bbox"] == pytest.approx([188.2, 135.1, 226.6, 169.8], abs=0.1)
    assert described["rle"]["size"] == [480, 640]
    assert described["area_fraction"] == pytest.approx(0.098, abs=0.001)


def test_a_polygon_has_the_area_of_its_mask_and_stays_inside_the_picture() -> None:
    gaussian = Gaussian(cx=5.0, cy=30.0, sigma_x=12.0, sigma_y=20.0)

    (points,) = masks.polygon(gaussian, 64, 48, 0.5)
    area = float(coco.area(coco.frPyObjects([points], 48, 64))[0])
    assert area == pytest.approx(masks.raster(gaussian, 64, 48, 0.5).sum(), rel=0.05)
    assert min(points) >= 0
    assert max(points[::2]) <= 64
    assert max(points[1::2]) <= 48
    assert masks.polygon(Gaussian(-200.0, 10.0, 5.0, 5.0), 64, 48, 0.5) == []


def test_an_overlay_dims_what_is_far_away_and_marks_the_contour() -> None:
    picture = np.full((90, 120, 3), 200, np.uint8)
    drawn = np.asarray(Image.open(io.BytesIO(masks.overlay(picture, Gaussian(60.0, 45.0, 15.0, 10.0)))))

    assert drawn.shape == picture.shape
    assert (drawn[45, 60] > 190).all()
    assert (drawn[2, 2] < 120).all()
    contour = (drawn == masks.CONTOUR).all(axis=2)
    radius_x, _ = Gaussian(60.0, 45.0, 15.0, 10.0).radii(0.5)
    assert contour[45, round(60 + radius_x) - 1 : round(60 + radius_x) + 2].any()
    assert not contour[40:50, 55:65].any()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode, numpy 2
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_every_form_of_a_map_describes_the_same_pixels_of_the_picture(resize: decoding.Resize) -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = 1.0
    geometry = Geometry(90, 60, 32, resize)
    described = masks.describe_map(values, geometry, threshold=0.6, kinds=("map", "rle", "png"))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(described["png"]))))
    decoded = coco.decode({"size": described["rle"]["size"], "counts": described["rle"]["counts"].encode()})

    assert picture.shape == (60, 90)
    assert ((picture >= 0.6 * 255) == decoded).all()
    assert described["area_fraction"] == pytest.approx(decoded.mean())
    left, top, across, down = described["square"]
    assert (left, top, across, down) == ((0, 0, 90, 60) if resize == "squash" else (15, 0, 60, 60))
    x, y = described["peak"]
    assert abs(x - (left + across * 2.5 / 4)) <= 2
    assert abs(y - (top + down * 1.5 / 4)) <= 2
    rows, columns = decoded.nonzero()
    assert described["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert not picture[:, : int(left)].any()


def test_a_map_dims_what_is_low_and_an_empty_one_is_empty() -> None:
    picture, geometry = np.full((60, 90, 3), 200, np.uint8), Geometry(90, 60, 32, "squash")
    values = np.zeros((4, 4), np.float32)
    values[:, :2] = 1.0
    drawn = np.asarray(Image.open(io.BytesIO(masks.map_overlay(picture, values, geometry))))

    assert (drawn[:, 5] > 195).all()
    assert (drawn[:, 85] < 100).all()
    assert masks.describe_map(np.zeros((4, 4), np.float32), geometry)["bbox"] == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, 2.0])
def test_a_threshold_outside_the_open_unit_interval_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        masks.describe(Gaussian(5, 5, 2, 2), 10, 10, threshold=threshold)
