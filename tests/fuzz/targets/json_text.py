r"""JSON of clients: what is accepted has the value that other parsers read, with images in base64 or without.

A byte \x01 in an input stands for a string long enough to be cut out as an image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

from app.errors import InvalidRequest, Malformed, Problem, TooLarge
from app.http import json_text

MOST_PARTS = 400
MOST_REST_BYTES = 1 << 16
LONG = b"A" * (json_text.LONG_BYTES + 1)


def check(data: bytes) -> bool:
    text = data.replace(b"\x01", LONG)
    value, refusal = outcome(lambda: json_text.parse(text, MOST_PARTS))
    same, same_refusal = outcome(lambda: json_text.parse_with_images(text, MOST_PARTS, MOST_REST_BYTES))
    assert same_refusal in (refusal, TooLarge)
    if same_refusal is not None:
        return False
    check_value(value, 0)
    assert same == value
    assert json.loads(text) == value
    try:
        other = from_json(text, allow_inf_nan=False)
    except ValueError:
        return True
    assert other == value
    return True


def outcome(parse: Callable[[], Any]) -> tuple[Any, type[Problem] | None]:
    """The value, or the kind of the refusal."""
    try:
        return parse(), None
    except (TooLarge, Malformed, InvalidRequest) as problem:
        return None, type(problem)


def check_value(value: Any, depth: int) -> None:
    """Finite numbers, texts that a database stores, within the limits."""
    if isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, str):
        assert "\0" not in value
        value.encode()
    elif isinstance(value, (dict, list)):
        assert depth < json_text.DEPTH
        assert isinstance(value, list) or len(value) <= json_text.MOST_FIELDS
        for inner in (*value, *value.values()) if isinstance(value, dict) else value:
            check_value(inner, depth + 1)
