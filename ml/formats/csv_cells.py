"""Cells of the CSV files that are written here: none is a formula for a spreadsheet, text is read back exactly."""

from __future__ import annotations

FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that starts so (C3)
GAUSSIAN_COLUMNS = ("cx", "cy", "sigma_x", "sigma_y")  # of a localization, in pixels of the original image


def escape(value: object) -> object:
    """The cell for a value: text that a spreadsheet would run gets an apostrophe, truth is spelled as in JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and _looks_escaped(value) and not _is_number(value):
        return "'" + value
    return "" if value is None else value


def unescape(cell: str) -> str:
    """The text that `escape` made this cell of."""
    return cell[1:] if cell.startswith("'") and _looks_escaped(cell) else cell


def _looks_escaped(text: str) -> bool:
    """Whether a text is a formula behind any number of apostrophes: one more or less keeps all of them apart."""
    return text.lstrip("'").startswith(FORMULA_PREFIXES)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
