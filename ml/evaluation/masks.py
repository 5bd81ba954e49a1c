"""A Gaussian or a map on a picture, and every form in which it is asked for: box, RLE, polygon, PNG, overlay.

A mask is the ellipse in which the Gaussian is at least `threshold`: all forms describe the same pixels, and none needs
an array of the picture's size beyond the picture itself. A map is a coarse field over the network's square, enlarged
smoothly; its mask is where it is at least `threshold`. Knows no network and no request.

Points are continuous picture pixels, pixel i covering [i, i + 1); a pixel is inside if its middle is.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from ml.data.decoding import Geometry

KINDS = ("gaussian", "map", "rle", "polygon", "png")
POLYGON_POINTS = 64
STRIP_ROWS = 256  # overlays are blended strip by strip: a float copy of a 25-megapixel picture would take 300 MB
DIMMED = 0.45  # how much of the picture shows far outside the mask
CONTOUR = (255, 214, 0)

ImageArray = NDArray[np.uint8]


@dataclass(frozen=True)
class Gaussian:
    """Centre and the standard deviations along x and y, in picture pixels."""

    cx: float
    cy: float
    sigma_x: float
    sigma_y: float

    @classmethod
    def from_square(cls, centre_x: float, centre_y: float, sigma: float, geometry: Geometry) -> Self:
        """What a network saw at (centre_x, centre_y), where 0 is the middle of its first pixel, with one sigma."""
        cx, cy = geometry.inverse(np.array([centre_x + 0.5, centre_y + 0.5]))
        scale_x, scale_y = geometry.scale
        return cls(float(cx), float(cy), sigma / scale_x, sigma / scale_y)

    def radii(self, threshold: float) -> tuple[float, float]:
        """Half axes of the ellipse in which the Gaussian is at least `threshold` in (0, 1)."""
        if not 0.0 < threshold < 1.0:
            raise ValueError("a mask threshold lies strictly between 0 and 1")
        reach = math.sqrt(-2.0 * math.log(threshold))
        return self.sigma_x * reach, self.sigma_y * reach


def describe(
    gaussian: Gaussian, width: int, height: int, *, threshold: float = 0.5, kinds: Collection[str] = ("gaussian",)
) -> dict[str, Any]:
    """The `mask` object of the API, for a picture of width x height; `kinds` adds rle, polygon, png (base64)."""
    runs = _runs(gaussian, width, height, threshold)
    found: dict[str, Any] = {
        "space": "image_pixels",
        "gaussian": {"cx": gaussian.cx, "cy": gaussian.cy, "sigma_x": gaussian.sigma_x, "sigma_y": gaussian.sigma_y},
        "bbox": bbox(gaussian, width, height, threshold),
        "threshold": threshold,
        "area_fraction": float(sum(runs[1::2])) / (width * height),
    }
    if "rle" in kinds:
        found["rle"] = _compressed(runs, width, height)
    if "polygon" in kinds:
        found["polygon"] = polygon(gaussian, width, height, threshold)
    if "png" in kinds:
        found["png"] = base64.b64encode(png(gaussian, width, height, threshold)).decode("ascii")
    return found


def bbox(gaussian: Gaussian, width: int, height: int, threshold: float) -> list[float]:
    """x, y, width, height of the ellipse inside the picture."""
    rx, ry = gaussian.radii(threshold)
    left, right = (min(max(x, 0.0), float(width)) for x in (gaussian.cx - rx, gaussian.cx + rx))
    top, bottom = (min(max(y, 0.0), float(height)) for y in (gaussian.cy - ry, gaussian.cy + ry))
    return [left, top, right - left, bottom - top]


def polygon(gaussian: Gaussian, width: int, height: int, threshold: float) -> list[list[float]]:
    """COCO's [[x1, y1, x2, y2, ...]]: the ellipse cut off at the picture's edges; empty if it lies outside."""
    rx, ry = gaussian.radii(threshold)
    angles = np.arange(POLYGON_POINTS) * (2 * math.pi / POLYGON_POINTS)
    points = [(gaussian.cx + rx * math.cos(a), gaussian.cy + ry * math.sin(a)) for a in angles]
    for axis, bound, side in ((0, 0.0, 1), (0, float(width), -1), (1, 0.0, 1), (1, float(height), -1)):
        points = _clipped(points, axis, bound, side)
    return [[value for point in points for value in point]] if len(points) >= 3 else []


def png(gaussian: Gaussian, width: int, height: int, threshold: float) -> bytes:
    """A grey PNG: 255 inside the mask, 0 outside."""
    inside = raster(gaussian, width, height, threshold)
    return _encoded(Image.fromarray(inside.view(np.uint8) * np.uint8(255)))


def raster(gaussian: Gaussian, width: int, height: int, threshold: float) -> NDArray[np.bool_]:
    """bool (H, W)."""
    first, last = _spans(gaussian, width, height, threshold)
    rows = np.arange(height)[:, None]
    inside: NDArray[np.bool_] = (rows >= first) & (rows < last)
    return inside


def overlay(image: ImageArray, gaussian: Gaussian | None, *, threshold: float = 0.5) -> bytes:
    """The picture as PNG, dimmed away from the object and with the mask's contour; as it is without a Gaussian."""
    if gaussian is None:
        return _encoded(Image.fromarray(image))
    height, width = image.shape[:2]
    gaussian.radii(threshold)  # refuse a bad threshold before drawing
    line = max(1.0, min(width, height) / 200)  # half the contour's width
    x = ((np.arange(width) + 0.5 - gaussian.cx) / gaussian.sigma_x).astype(np.float32)
    out = np.empty_like(image)
    reach = -2.0 * math.log(threshold)
    for top in range(0, height, STRIP_ROWS):
        rows = np.arange(top, min(top + STRIP_ROWS, height))
        y = ((rows + 0.5 - gaussian.cy) / gaussian.sigma_y).astype(np.float32)[:, None]
        square = x * x + y * y
        light = DIMMED + (1 - DIMMED) * np.exp(-square / 2)
        strip = image[rows] * light[:, :, None]
        # distance to the contour to first order: |F| / |gradient of F|, F = square - reach
        slope = 2 * np.sqrt((x / gaussian.sigma_x) ** 2 + (y / gaussian.sigma_y) ** 2) + 1e-6
        strip[np.abs(square - reach) / slope <= line / 2 + 0.25] = CONTOUR
        out[rows] = strip.astype(np.uint8)
    return _encoded(Image.fromarray(out))


def enlarged(values: NDArray[np.float32], geometry: Geometry) -> NDArray[np.uint8]:
    """A map (h, w) in [0, 1] over the network's square, on the picture: uint8 (H, W), 255 is 1; 0 outside the square.

    In bytes, because floats of a 25-megapixel picture would take 100 MB.
    """
    left, top, right, bottom = (round(edge) for edge in geometry.box)
    small = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    inside = np.asarray(small.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR))
    if inside.shape == (geometry.height, geometry.width):
        return inside
    field = np.zeros((geometry.height, geometry.width), np.uint8)
    field[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return field


def describe_map(
    values: NDArray[np.float32], geometry: Geometry, *, threshold: float = 0.5, kinds: Collection[str] = ("map",)
) -> dict[str, Any]:
    """The `map` object of the API: the coarse values, and what the map is on the picture; `kinds` adds rle, png.

    `square` x, y, width, height is what of the picture the values cover, `peak` the middle of its first brightest
    pixel, `bbox` x, y, width, height of all that is at least `threshold`.
    """
    field = enlarged(values, geometry)
    inside = field >= threshold * 255
    left, top, right, bottom = geometry.box
    row, column = np.unravel_index(int(field.argmax()), field.shape)
    found: dict[str, Any] = {
        "values": [[round(float(value), 3) for value in line] for line in values],
        "square": [left, top, right - left, bottom - top],
        "peak": [float(column) + 0.5, float(row) + 0.5],
        "bbox": _bounds(inside),
        "area_fraction": float(inside.mean()),
    }
    if "rle" in kinds:
        packed = coco.encode(np.asfortranarray(inside.view(np.uint8)))
        found["rle"] = {"size": [geometry.height, geometry.width], "counts": packed["counts"].decode("ascii")}
    if "png" in kinds:
        found["png"] = base64.b64encode(map_png(values, geometry)).decode("ascii")
    return found


def map_png(values: NDArray[np.float32], geometry: Geometry) -> bytes:
    """The map itself as a grey PNG of the picture's size."""
    return _encoded(Image.fromarray(enlarged(values, geometry)))


def map_overlay(image: ImageArray, values: NDArray[np.float32], geometry: Geometry) -> bytes:
    """The picture as PNG, dimmed where the map is low."""
    field = enlarged(values, geometry)
    out = np.empty_like(image)
    for top in range(0, image.shape[0], STRIP_ROWS):
        rows = slice(top, top + STRIP_ROWS)
        light = DIMMED + (1 - DIMMED) * (field[rows].astype(np.float32) / 255)
        out[rows] = (image[rows] * light[:, :, None]).astype(np.uint8)
    return _encoded(Image.fromarray(out))


def _bounds(inside: NDArray[np.bool_]) -> list[float]:
    columns, rows = (np.flatnonzero(inside.any(axis=axis)) for axis in (0, 1))
    if not len(columns):
        return [0.0, 0.0, 0.0, 0.0]
    left, top = int(columns[0]), int(rows[0])
    return [float(left), float(top), float(columns[-1] + 1 - left), float(rows[-1] + 1 - top)]


def _spans(
    gaussian: Gaussian, width: int, height: int, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each column the first row inside and the first after: int64 (W,) each, equal where the column is outside."""
    rx, ry = gaussian.radii(threshold)
    across = 1.0 - ((np.arange(width) + 0.5 - gaussian.cx) / rx) ** 2
    half = ry * np.sqrt(np.maximum(across, 0.0))
    first = np.ceil(gaussian.cy - half - 0.5).clip(0, height).astype(np.int64)
    last = (np.floor(gaussian.cy + half - 0.5) + 1).clip(0, height).astype(np.int64)
    last = np.where(across < 0, first, np.maximum(last, first))
    return first, last


def _runs(gaussian: Gaussian, width: int, height: int, threshold: float) -> list[int]:
    """Lengths of runs of 0 and 1 in turn, column by column, beginning with 0."""
    runs: list[int] = []
    outside = 0
    for first, last in zip(*(s.tolist() for s in _spans(gaussian, width, height, threshold)), strict=True):
        if last > first:
            if first == 0 and outside == 0 and runs:
                runs[-1] += last  # the column before reached the bottom
            else:
                runs += [outside + first, last - first]
            outside = height - last
        else:
            outside += height
    return [*runs, outside] if outside or not runs else runs


def _compressed(runs: list[int], width: int, height: int) -> dict[str, Any]:
    packed = coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def _clipped(points: list[tuple[float, float]], axis: int, bound: float, side: int) -> list[tuple[float, float]]:
    """Sutherland and Hodgman: the part of a convex polygon on one side of an axis-parallel line."""
    kept: list[tuple[float, float]] = []
    for here, there in zip(points, points[1:] + points[:1], strict=True):
        from_here, from_there = side * (here[axis] - bound), side * (there[axis] - bound)
        if from_here >= 0:
            kept.append(here)
        if from_here * from_there < 0:
            part = from_here / (from_here - from_there)
            kept.append((here[0] + part * (there[0] - here[0]), here[1] + part * (there[1] - here[1])))
    return kept


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)  # twice as fast as the default, a tenth larger
    return buffer.getvalue()
