"""Drawn foregrounds and backgrounds: an outline on a plate of random colour, and six families of textures.

They need no file and no licence, and no two drawings are the same. `ml.scenes.generate` decides which foreground
stands before which background, how large and where.

Shapes: `S` side of an image in pixels; covers float64 (S, S) in [0, 1]; colours float64 (3,) or (S, S, 3) in [0, 255].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
from PIL import Image, ImageDraw

from ml.scenes.protocols import Floats, Layer

CANVAS_SIDE = 256  # outlines are drawn on about this many pixels a side and reduced, so that they are smooth
LEAST_SCALE, LARGEST_SCALE = 3, 8  # of the canvas to the image
CORNER = 0.22  # radius of a plate's corners, as a share of its side


class DrawnForegrounds:
    """Objects whose class shows in their outline alone, on plates of random colour."""

    classes = ("circle", "square", "triangle", "cross", "star", "moon")

    def split(self, held_out: float) -> tuple[Self, Self]:
        """Both parts are all of it, since no drawing occurs twice."""
        return self, self

    def layers(
        self, kind: int, centre: Floats, size: float, side: int, random: np.random.Generator
    ) -> tuple[Layer, ...]:
        """Plate and outline.

        Args:
            kind: Number of the class.
            centre: x, y of the plate's centre in pixels.
            size: Side of the plate in pixels.
            side: S.
            random: Draws colour, size and angle of the outline.
        """
        body = _cover(side, lambda pen, scale: _plate(pen, centre * scale, size * scale))
        radius, angle = size * random.uniform(0.30, 0.36), random.uniform(-0.15, 0.15)
        corners = centre + radius * _corners(self.classes[kind], angle)
        outline = _cover(side, lambda pen, scale: _outline(pen, corners * scale, max(1, int(size * scale * 0.10))))
        colour = random.uniform(30, 225, 3)
        ink = np.full(3, 245.0 if colour @ (0.3, 0.6, 0.1) < 128 else 15.0)
        return Layer(body, colour), Layer(outline, ink)


def _cover(side: int, plot: Callable[[ImageDraw.ImageDraw, int], None]) -> Floats:
    """How much of each pixel a drawing covers."""
    scale = min(LARGEST_SCALE, max(LEAST_SCALE, CANVAS_SIDE // side))
    canvas = Image.new("L", (side * scale, side * scale))
    plot(ImageDraw.Draw(canvas), scale)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), np.float64) / 255


def _plate(pen: ImageDraw.ImageDraw, centre: Floats, side: float) -> None:
    corners = [*(centre - side / 2), *(centre + side / 2)]
    pen.rounded_rectangle(corners, radius=side * CORNER, fill=255)


def _outline(pen: ImageDraw.ImageDraw, corners: Floats, width: int) -> None:
    """A closed line; its first edge is drawn twice, so that every corner is joined."""
    points = [(x, y) for x, y in corners.tolist()]
    pen.line([*points, points[0], points[1]], fill=255, width=width, joint="curve")


def _corners(name: str, angle: float) -> Floats:
    """Corners (n, 2) of the class's outline around the origin, at distances of about 1."""
    if name == "circle":
        return _around(np.ones(32), angle)
    if name == "square":
        return _around(np.full(4, 1.15), angle + np.pi / 4)
    if name == "triangle":
        return _around(np.full(3, 1.15), angle - np.pi / 2)
    if name == "star":
        return _around(np.where(np.arange(10) % 2 == 0, 1.15, 0.5), angle - np.pi / 2)
    if name == "cross":
        inner, outer = 0.35, 1.05
        quarter = np.array([[inner, -outer], [inner, -inner], [outer, -inner]])
        return np.concatenate([quarter @ _rotation(angle + k * np.pi / 2).T for k in range(4)])
    back = np.stack([np.cos(a := np.linspace(0.35 * np.pi, 1.65 * np.pi, 20)), np.sin(a)], axis=1)
    front = np.stack([0.45 + 0.9 * np.cos(b := np.linspace(1.5 * np.pi, 0.5 * np.pi, 16)), 0.9 * np.sin(b)], axis=1)
    moon: Floats = np.concatenate([back, front]) @ _rotation(angle).T
    return moon


def _around(radii: Floats, angle: float) -> Floats:
    angles = angle + np.arange(len(radii)) * 2 * np.pi / len(radii)
    points: Floats = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points


def _rotation(angle: float) -> Floats:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


class DrawnBackgrounds:
    """Six families of scenes, each with its own colours and texture."""

    names = ("meadow", "sky", "desert", "sea", "bricks", "night")

    def split(self, held_out: float) -> tuple[Self, Self]:
        """Both parts are all of it, since no drawing occurs twice."""
        return self, self

    def sample(self, number: int, side: int, random: np.random.Generator) -> Floats:
        """A new image (S, S, 3) of family `number`."""
        y, x = np.mgrid[0:side, 0:side] / side
        soft, fine = _clouds(side, 0.16, random), random.normal(0, 1, (side, side))
        phase = random.uniform(0, 2 * np.pi)
        name = self.names[number]
        if name == "meadow":
            base, texture = (86, 150, 62), 9 * soft + 9 * fine * (0.5 + 0.5 * y)
        elif name == "sky":
            base, texture = (128, 182, 232), 22 * soft - 14 * (y - 0.5)
        elif name == "desert":
            base, texture = (216, 184, 122), 11 * np.sin(2 * np.pi * (4 * y + 1.2 * x) + phase + soft) + 3 * fine
        elif name == "sea":
            base, texture = (32, 104, 138), 13 * np.sin(2 * np.pi * 6 * y + phase + 1.5 * np.sin(2 * np.pi * x + phase))
        elif name == "bricks":
            row = np.floor(6 * y + phase)
            joint = ((6 * y + phase) % 1 < 0.18) | ((3 * x + 0.5 * (row % 2) + phase) % 1 < 0.10)
            base, texture = (164, 76, 58), 26.0 * joint + 5 * fine
        else:
            base, texture = (22, 24, 52), 8 * soft + 150 * (random.random((side, side)) < 0.02)
        tint = random.normal(0, 6, 3)
        image: Floats = np.asarray(base, np.float64) + tint + np.asarray(texture)[:, :, None]
        return image


def _clouds(side: int, grain: float, random: np.random.Generator) -> Floats:
    """Smooth noise of unit variance with details of about `grain` of the side."""
    grid = round(1 / grain)
    noise = Image.fromarray(random.normal(0, 1, (grid, grid)).astype(np.float32))
    smooth = np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), np.float64)
    smooth = smooth - smooth.mean()
    cloud: Floats = smooth / max(float(smooth.std()), 1e-9)
    return cloud
