"""Strict JSON of clients (J1-J3, J6), whose cost is bounded before anything is made of it.

A body of `[[],[],...` becomes twenty times its size in memory, so the parts of a text are counted first. An image in
base64 is cut out before: neither the check of the text nor the parser reads it.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Iterable
from typing import Any

from app.errors import Fault, InvalidRequest, Malformed, TooLarge
from app.http.problems import pointer
from ml.formats.errors import printable

DEPTH = 32  # of nested JSON; our deepest request has 4 levels
DELIMITERS = b',:[{"\\'  # begin or separate values, names and escapes
MOST_PARTS = 150_000  # a transition matrix of 256 classes has 66,000
MOST_FIELDS = 1000  # of one object: each that is unknown becomes an error
SLICE_BYTES = 1 << 20  # read at a time: other threads run in between
LONG_BYTES = 4096  # a longer text may be cut out; no text that we store is longer
PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
UNESCAPED = bytes(set(range(0x20, 0x7F)) - set(b'"\\'))  # the ASCII that a string holds as it is
_is_name = re.compile(rb"[ \t\r\n]*:").match


def parse(data: bytes, most_parts: int = MOST_PARTS) -> Any:
    """Parse JSON as in RFC 8259: UTF-8, no NaN, no duplicate names, and no text that a database cannot store.

    Args:
        data: The text.
        most_parts: How many of the characters `DELIMITERS` it may have, text included.

    Raises:
        TooLarge: It has more parts.
        Malformed: It is not such JSON.
        InvalidRequest: A name is duplicated, or a value cannot be stored; with a pointer.
    """
    check_parts(data, most_parts)
    return load(data, {})


def parse_with_images(data: bytes, most_parts: int, most_rest_bytes: int) -> Any:
    """The same for a body with images in base64.

    Args:
        data: The text.
        most_parts: As for `parse`.
        most_rest_bytes: How long the text may be without its long strings of plain characters.
    """
    check_parts(data, most_parts)
    rest, cut = _cut_long_strings(data)
    if len(rest) > most_rest_bytes:
        raise TooLarge(f"The body has more than {most_rest_bytes} bytes besides images in base64.")
    return load(rest, cut)


def check_parts(data: bytes, most: int) -> None:
    """Refuse a text with more than `most` of the characters `DELIMITERS`, which bound what it becomes; TooLarge."""
    count = 0
    for start in range(0, len(data), SLICE_BYTES):
        count += sum(data.count(part, start, start + SLICE_BYTES) for part in DELIMITERS)
        if count > most:
            named = " ".join(DELIMITERS.decode())
            raise TooLarge(f"The body has too many values: more than {most} of the characters {named}")


def _cut_long_strings(data: bytes) -> tuple[bytes, dict[str, str]]:
    """The text with a short name in the place of each long string, and the strings by these names.

    What lies between two quotes is a whole string if it begins with a character of base64, which none may between two
    strings, and holds nothing but `UNESCAPED`. Names of fields stay, and so does what follows an escaped quote.
    """
    prefix = secrets.token_hex(8)  # no client can guess the names
    pieces: list[bytes] = []
    cut: dict[str, str] = {}
    start = 0
    while (end := data.find(b'"', start)) >= 0:
        text = data[start:end]
        if end - start > LONG_BYTES and data[start] in PLAIN and _is_whole_value(data, start, end):
            cut[name := f"{prefix}-{len(cut)}"] = text.decode("ascii")
            text = name.encode()
        pieces += (text, b'"')
        start = end + 1
    return b"".join((*pieces, data[start:])), cut


def _is_whole_value(data: bytes, start: int, end: int) -> bool:
    """Whether the bytes between two quotes are a string as written, all of it, and no name of a field."""
    if data[max(0, start - 2) : max(0, start - 1)] == b"\\" or _is_name(data, end + 1):
        return False
    slices = (data[at : min(at + SLICE_BYTES, end)] for at in range(start, end, SLICE_BYTES))
    return not any(part.translate(None, UNESCAPED) for part in slices)


def load(data: bytes, cut: dict[str, str]) -> Any:
    """The value of a text whose parts were counted, and of which the strings `cut` were cut out; raises as `parse`."""
    try:
        value = _decoder.decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else "it cannot be parsed"
        raise Malformed(f"The body is not JSON in UTF-8: {reason}.") from None
    if isinstance(value, str) and value in cut:
        return cut[value]
    _check(value, (), cut)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        seen: set[str] = set()
        name = next(n for n, _ in pairs if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        fault = Fault("", "duplicate_field", f"The field {printable(name)!r} appears twice in one object.")
        raise InvalidRequest(fault.detail, errors=[fault])
    return names


_decoder = json.JSONDecoder(object_pairs_hook=_unique)  # to make one for every line of an upload takes longer


def _check(value: Any, place: tuple[Any, ...], cut: dict[str, str]) -> None:
    """Refuse what is JSON for the parser but not accepted: numbers that are not finite, NUL, lone surrogates, too much
    depth, too many fields. Strings that were cut out come back.

    Args:
        value: What was parsed.
        place: Names and positions that lead to it.
        cut: Strings by the names that stand for them.
    """
    if isinstance(value, float) and not math.isfinite(value):
        detail = "NaN and Infinity are no numbers." if math.isnan(value) else "The number is infinite or out of range."
        raise _invalid(place, "finite_number", detail)
    if isinstance(value, str) and not is_text(value):
        raise _invalid(place, "text", "NUL characters and lone surrogates are not text.")
    if not isinstance(value, (dict, list)):
        return
    if len(place) == DEPTH:
        raise _invalid(place, "too_deep", f"Nested deeper than {DEPTH} levels.")
    if isinstance(value, dict) and len(value) > MOST_FIELDS:
        raise _invalid(place, "too_many_fields", f"The object has {len(value)} fields; at most {MOST_FIELDS} are read.")
    items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in items:
        if isinstance(name, str) and not is_text(name):
            raise _invalid((*place, name), "text", "NUL characters and lone surrogates are not text.")
        if isinstance(inner, str):  # most values are texts, and no call is made for these
            if inner in cut:
                value[name] = cut[inner]
            elif not is_text(inner):
                raise _invalid((*place, name), "text", "NUL characters and lone surrogates are not text.")
        elif isinstance(inner, (dict, list, float)):
            _check(inner, (*place, name), cut)


def _invalid(place: tuple[Any, ...], code: str, detail: str) -> InvalidRequest:
    at = pointer(("body", *place))[:200]
    return InvalidRequest(f"{at or 'body'}: {detail}", errors=[Fault(at, code, detail)])


def is_text(value: str) -> bool:
    """Whether it has neither NUL characters nor lone surrogates."""
    if "\0" in value:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
