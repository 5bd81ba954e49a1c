"""The page of a problem: what its code means and what to do about it, as HTML or JSON, served without a network.

The texts are in `problems.toml`, one entry a code, whichever process reports it: the API, an ingest or a job.
"""

from __future__ import annotations

import functools
import tomllib
from html import escape
from pathlib import Path
from typing import NamedTuple

from app.errors import type_of

FILE = Path(__file__).with_name("problems.toml")


class ProblemText(NamedTuple):
    """One code in words.

    Attributes:
        code: Name in snake_case.
        group: Heading under which the code is listed.
        status: HTTP status; None where the code stands only in the error of a failed job or data set.
        title: The title of the problem document.
        happened: What happened, one sentence.
        remedy: What to do about it, one sentence.
    """

    code: str
    group: str
    status: int | None
    title: str
    happened: str
    remedy: str


@functools.cache
def texts() -> dict[str, ProblemText]:
    """Every problem by its code, in the file's order."""
    groups = tomllib.loads(FILE.read_text())
    return {
        code: ProblemText(code, group, text.get("status"), text["title"], text["happened"], text["remedy"])
        for group, entries in groups.items()
        for code, text in entries.items()
    }


def document(text: ProblemText) -> dict[str, str | int | None]:
    """The page for programs."""
    return {"type": type_of(text.code), **text._asdict()}


def html(text: ProblemText) -> str:
    """The page for people."""
    status = f"HTTP status {text.status}" if text.status else "The error of a failed job or data set"
    return html_of(
        text.title,
        f"<p><code>{escape(text.code)}</code> · {status}</p><p>{escape(text.happened)}</p><p>{escape(text.remedy)}</p>",
    )


def html_of(title: str, body: str) -> str:
    """A page with this title; `body` is HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="/static/favicon.svg">'
        '<link rel="stylesheet" href="/static/css/base.css"></head><body><main>'
        f"<h1>{escape(title)}</h1>{body}</main></body></html>"
    )
