"""What the API and the worker's children agree on in CSV files."""

from __future__ import annotations

FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that begins so (C3)
GAUSSIAN_COLUMNS = ("cx", "cy", "sigma_x", "sigma_y")  # of a mask, in pixels of the image
