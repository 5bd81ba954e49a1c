"""Log records: one JSON object a line, bounded, with nothing in it that a terminal would obey."""

from __future__ import annotations

import json
import logging

from app import logs


def line(message: str) -> str:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, message, (), None)
    with logs.bound(request_id="r", job_id=None):
        return logs.JsonLines("api").format(record)


def test_SEC9_a_record_is_one_line_of_plain_ascii() -> None:
    text = line("a\nb\x1b[2J\u202e\ud800")
    assert text.isascii()
    assert text.isprintable()
    record = json.loads(text)
    assert (record["process"], record["request_id"], "job_id" in record) == ("api", "r", False)


def test_SEC9_a_record_never_exceeds_its_bytes() -> None:
    for character in ("a", "\x00", "\U0001f600"):
        text = line(character * 100_000)
        assert len(text) <= logs.RECORD_BYTES
        assert json.loads(text)["request_id"] == "r"
