"""Localization masks and attention maps on an image, in every form a request can ask for.

A mask is the ellipse in which a Gaussian is at least `threshold`. Box, RLE, polygon and PNG describe the same pixels,
and none needs an array of the image's size except where the result is one. A map is a coarse field over the network's
square, enlarged smoothly; its box is of the pixels that are at least `threshold`.

Points are continuous image coordinates in pixels: pixel i covers [i, i + 1), and is inside if its centre is. `H`, `W`
are the image's height and width.
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

from ml.data.decoding import Geometry, ImageArray

KINDS = ("gaussian", "map", "rle", "polygon", "png")
POLYGON_POINTS = 64
STRIP_ROWS = 256  # overlays are blended in strips: a float copy of a 25-megapixel image would take 300 MB
DIMMED = 0.45  # brightness of the image far outside the mask
CONTOUR = (255, 214, 0)  # RGB


@dataclass(frozen=True)
class Gaussian:
    """Centre and standard deviations along x and y, in image pixels."""

    cx: float
    cy: float
    sigma_x: float
    sigma_y: float

    @classmethod
    def from_square(cls, centre_x: float, centre_y: float, sigma: float, geometry: Geometry) -> Self:
        """A Gaussian of the network's square, in the pixels of the image that was resized into it.

        Args:
            centre_x, centre_y: In pixels of the square; 0 is the centre of its first pixel.
            sigma: Standard deviation in pixels of the square, the same along x and y.
            geometry: How the image lies in the square.
        """
        cx, cy = geometry.inverse(np.array([centre_x + 0.5, centre_y + 0.5]))
        scale_x, scale_y = geometry.scale
        return cls(float(cx), float(cy), sigma / scale_x, sigma / scale_y)

    def radii(self, threshold: float) -> tuple[float, float]:
        """Half axes (x, y) of the ellipse in which the Gaussian is at least `threshold`; ValueError outside (0, 1)."""
        if not 0.0 < threshold < 1.0:
            raise ValueError("a mask threshold lies strictly between 0 and 1")
        reach = math.sqrt(-2.0 * math.log(threshold))
        return self.sigma_x * reach, self.sigma_y * reach


def describe(
    gaussian: Gaussian, width: int, height: int, *, threshold: float = 0.5, kinds: Collection[str] = ("gaussian",)
) -> dict[str, Any]:
    """The `mask` object of the API.

    Args:
        gaussian: In pixels of the image; it may lie partly or wholly outside.
        width: W.
        height: H.
        threshold: In (0, 1); the Gaussian is 1 at its centre.
        kinds: Of `KINDS`: "rle" (COCO, compressed), "polygon" (COCO) and "png" (base64) are added to the object.

    Raises:
        ValueError: `threshold` is not in (0, 1).
    """
    runs = _runs(gaussian, width, height, threshold)
    described: dict[str, Any] = {
        "space": "image_pixels",
        "gaussian": {"cx": gaussian.cx, "cy": gaussian.cy, "sigma_x": gaussian.sigma_x, "sigma_y": gaussian.sigma_y},
        "bbox": bbox(gaussian, width, height, threshold),
        "threshold": threshold,
        "area_fraction": float(sum(runs[1::2])) / (width * height),
    }
    if "rle" in kinds:
        described["rle"] = _compress(runs, width, height)
    if "polygon" in kinds:
        described["polygon"] = polygon(gaussian, width, height, threshold)
    if "png" in kinds:
        described["png"] = base64.b64encode(png(gaussian, width, height, threshold)).decode("ascii")
    return described


def bbox(gaussian: Gaussian, width: int, height: int, threshold: float) -> list[float]:
    """x, y, width, height of the part of the ellipse inside the image; arguments as in `describe`."""
    rx, ry = gaussian.radii(threshold)
    left, right = (min(max(x, 0.0), float(width)) for x in (gaussian.cx - rx, gaussian.cx + rx))
    top, bottom = (min(max(y, 0.0), float(height)) for y in (gaussian.cy - ry, gaussian.cy + ry))
    return [left, top, right - left, bottom - top]


def polygon(gaussian: Gaussian, width: int, height: int, threshold: float) -> list[list[float]]:
    """COCO's [[x1, y1, ...]]: the ellipse clipped to the image; empty if outside. Arguments as in `describe`."""
    rx, ry = gaussian.radii(threshold)
    angles = np.arange(POLYGON_POINTS) * (2 * math.pi / POLYGON_POINTS)
    points = [(gaussian.cx + rx * math.cos(a), gaussian.cy + ry * math.sin(a)) for a in angles]
    for axis, bound, side in ((0, 0.0, 1), (0, float(width), -1), (1, 0.0, 1), (1, float(height), -1)):
        points = _clip(points, axis, bound, side)
    return [[value for point in points for value in point]] if len(points) >= 3 else []


def png(gaussian: Gaussian, width: int, height: int, threshold: float) -> bytes:
    """A grey PNG (H, W): 255 inside the mask, 0 outside; arguments as in `describe`."""
    inside = raster(gaussian, width, height, threshold)
    return _encode_png(Image.fromarray(inside.view(np.uint8) * np.uint8(255)))


def raster(gaussian: Gaussian, width: int, height: int, threshold: float) -> NDArray[np.bool_]:
    """bool (H, W): the pixels inside the mask; arguments as in `describe`."""
    first, last = _spans(gaussian, width, height, threshold)
    rows = np.arange(height)[:, None]
    inside: NDArray[np.bool_] = (rows >= first) & (rows < last)
    return inside


def overlay(image: ImageArray, gaussian: Gaussian | None, *, threshold: float = 0.5) -> bytes:
    """The image as PNG, dimmed outside of the mask and with the mask's contour.

    Args:
        image: uint8 (H, W, 3).
        gaussian: In pixels of the image; None leaves the image as it is.
        threshold: In (0, 1); ValueError otherwise.
    """
    if gaussian is None:
        return _encode_png(Image.fromarray(image))
    height, width = image.shape[:2]
    gaussian.radii(threshold)  # refuse a bad threshold before drawing
    line_width = max(1.0, min(width, height) / 200)
    x = ((np.arange(width) + 0.5 - gaussian.cx) / gaussian.sigma_x).astype(np.float32)
    out = np.empty_like(image)
    reach = -2.0 * math.log(threshold)
    for top in range(0, height, STRIP_ROWS):
        rows = np.arange(top, min(top + STRIP_ROWS, height))
        y = ((rows + 0.5 - gaussian.cy) / gaussian.sigma_y).astype(np.float32)[:, None]
        square = x * x + y * y
        brightness = DIMMED + (1 - DIMMED) * np.exp(-square / 2)
        strip = image[rows] * brightness[:, :, None]
        # Distance to the contour to first order: |F| / |gradient of F| for F = square - reach.
        slope = 2 * np.sqrt((x / gaussian.sigma_x) ** 2 + (y / gaussian.sigma_y) ** 2) + 1e-6
        strip[np.abs(square - reach) / slope <= line_width / 2 + 0.25] = CONTOUR
        out[rows] = strip.astype(np.uint8)
    return _encode_png(Image.fromarray(out))


def enlarge(values: NDArray[np.float32], geometry: Geometry) -> NDArray[np.uint8]:
    """A map on the image that was resized into the network's square.

    Args:
        values: (h, w) in [0, 1], over the square.
        geometry: How the image lies in the square.

    Returns:
        uint8 (H, W), 255 stands for 1, and 0 outside of the square. Bytes, since floats of a 25-megapixel image would
        take 100 MB.
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
    """The `map` object of the API.

    Args:
        values: (h, w) in [0, 1], over the network's square.
        geometry: How the image lies in the square.
        threshold: Of `bbox`, `area_fraction` and the RLE, in [0, 1].
        kinds: "rle" (COCO, compressed) and "png" (base64) are added to the object.

    Returns:
        `values`; `square`, x, y, width, height of the part of the image that they cover; `peak`, the centre of the
        first brightest pixel; `bbox`, x, y, width, height of all pixels of at least `threshold`.
    """
    field = enlarge(values, geometry)
    inside = field >= threshold * 255
    left, top, right, bottom = geometry.box
    row, column = np.unravel_index(int(field.argmax()), field.shape)
    described: dict[str, Any] = {
        "values": [[round(float(value), 3) for value in line] for line in values],
        "square": [left, top, right - left, bottom - top],
        "peak": [float(column) + 0.5, float(row) + 0.5],
        "bbox": _bounds(inside),
        "area_fraction": float(inside.mean()),
    }
    if "rle" in kinds:
        packed = coco.encode(np.asfortranarray(inside.view(np.uint8)))
        described["rle"] = {"size": [geometry.height, geometry.width], "counts": packed["counts"].decode("ascii")}
    if "png" in kinds:
        described["png"] = base64.b64encode(map_png(values, geometry)).decode("ascii")
    return described


def map_png(values: NDArray[np.float32], geometry: Geometry) -> bytes:
    """The map as a grey PNG (H, W); arguments as in `enlarge`."""
    return _encode_png(Image.fromarray(enlarge(values, geometry)))


def map_overlay(image: ImageArray, values: NDArray[np.float32], geometry: Geometry) -> bytes:
    """The image uint8 (H, W, 3) as PNG, dimmed where the map is low; other arguments as in `enlarge`."""
    field = enlarge(values, geometry)
    out = np.empty_like(image)
    for top in range(0, image.shape[0], STRIP_ROWS):
        rows = slice(top, top + STRIP_ROWS)
        brightness = DIMMED + (1 - DIMMED) * (field[rows].astype(np.float32) / 255)
        out[rows] = (image[rows] * brightness[:, :, None]).astype(np.uint8)
    return _encode_png(Image.fromarray(out))


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
    """Run lengths of COCO's RLE: pixels outside and inside in turn, column by column, beginning with outside."""
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


def _compress(runs: list[int], width: int, height: int) -> dict[str, Any]:
    packed = coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def _clip(points: list[tuple[float, float]], axis: int, bound: float, side: int) -> list[tuple[float, float]]:
    """Sutherland and Hodgman: the part of a convex polygon on one side of an axis-parallel line."""
    inside: list[tuple[float, float]] = []
    for here, there in zip(points, points[1:] + points[:1], strict=True):
        from_here, from_there = side * (here[axis] - bound), side * (there[axis] - bound)
        if from_here >= 0:
            inside.append(here)
        if from_here * from_there < 0:
            part = from_here / (from_here - from_there)
            inside.append((here[0] + part * (there[0] - here[0]), here[1] + part * (there[1] - here[1])))
    return inside


def _encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)  # twice as fast as the default, a tenth larger
    return buffer.getvalue()
