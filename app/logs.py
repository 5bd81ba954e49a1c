"""Logging as JSON lines on standard output, with request, job and data set ids from context variables.

Bodies, secrets and file names of clients are never logged; a record has at most 8 KiB (SEC9).
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

RECORD_BYTES = 8 * 1024

_context: ContextVar[dict[str, str]] = ContextVar("log_context", default={})  # noqa: B039 - never mutated, only replaced


@contextlib.contextmanager
def bound(**ids: str | None) -> Iterator[None]:
    """Add these ids to every record logged inside; None is left out."""
    token = _context.set(_context.get() | {k: v for k, v in ids.items() if v is not None})
    try:
        yield
    finally:
        _context.reset(token)


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object; `process` is the kind of process, such as `api` or `child`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process  # not a context variable: threads begin without any

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[: RECORD_BYTES // 2],
            "process": self._process,
            **_context.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-RECORD_BYTES // 2 :]
        text = json.dumps(line, ensure_ascii=True, default=str)
        if len(text) > RECORD_BYTES:
            line = (
                {k: line[k] for k in ("time", "level", "logger")}
                | _context.get()
                | {"message": text[: RECORD_BYTES // 4], "cut": True}
            )
            text = json.dumps(line, ensure_ascii=True)
        return text


def configure(level: str, *, process: str) -> None:
    """Send every record of this process to standard output, one JSON object a line. Called once by each `main`."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("uvicorn.access", "sqlalchemy.engine", "amqp", "kombu", "celery.redirected"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for framework in ("uvicorn", "uvicorn.error", "celery"):
        logging.getLogger(framework).handlers.clear()
        logging.getLogger(framework).propagate = True


def add_file(path: Path, *, process: str) -> None:
    """Append every record of this process to a file as well: the log of an attempt."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(JsonLines(process))
    logging.getLogger().addHandler(handler)
