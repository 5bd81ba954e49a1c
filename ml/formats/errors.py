"""The exceptions of this package, and how it repeats a user's text in a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TEXT_CHARS = 200  # how much of a user's own text a message repeats


class DatasetFormatError(Exception):
    """A data set that cannot be read.

    The service turns it into a problem document, the commands into `ml.errors.UnusableData`.

    Args:
        code: Why, in snake_case: `bad_archive`, `ambiguous_label_column`, `no_images` and so on.
        detail: A sentence that names the cause and, where there is one, the way out.
        location: The entry of the archive, or `<table>, line <number>`; None where the whole data set is at fault.
        columns: The columns of the table at fault, where naming one of them is the way out.
        sample_row: The first row of that table, by column.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        location: str | None = None,
        *,
        columns: Iterable[str] = (),
        sample_row: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.location = location
        self.columns = tuple(columns)
        self.sample_row = dict(sample_row or {})


class UnreadableFile(Exception):
    """A file of a data set, or of what a job found out about one, is missing or damaged."""


def printable(text: object, limit: int = TEXT_CHARS) -> str:
    """A user's text as a message may repeat it: control characters escaped, surrogates replaced.

    Args:
        text: Anything; its `str` is taken.
        limit: The most characters of the result. What is longer is cut and ends in an ellipsis.
    """
    plain = str(text)
    if len(plain) <= limit and plain.isprintable():
        return plain
    plain = plain[: limit + 1].encode("utf-8", "backslashreplace").decode()
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def name_list(names: Iterable[str]) -> str:
    """Names as a sentence may carry them: at most 20, each at most 60 characters; a set is sorted first."""
    items = sorted(names) if isinstance(names, set) else list(names)
    return ", ".join(printable(item, 60) for item in items[:20]) + (" ..." if len(items) > 20 else "")
