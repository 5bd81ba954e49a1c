"""CSV cells: nothing that a spreadsheet would run, and the exact text again when they are read."""

from __future__ import annotations

import pytest

from ml.formats import csv_cells


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd", "@sum", "\tx", "\rx", "'=1", "''-1"])
def test_C3_text_that_a_spreadsheet_would_run_is_escaped_and_read_back(text: str) -> None:
    assert csv_cells.escape(text) == f"'{text}"
    assert csv_cells.unescape(f"'{text}") == text


@pytest.mark.parametrize("text", ["cat", "", "'quoted", "-0.50", "+1", "01", "NA"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert csv_cells.escape(text) == text
    assert csv_cells.unescape(text) == text


def test_values_that_are_not_text_are_written_as_in_json() -> None:
    assert [csv_cells.escape(value) for value in (True, False, None, 3, 0.5)] == ["true", "false", "", 3, 0.5]
