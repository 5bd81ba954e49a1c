"""JSON of clients: its parts are counted before it is parsed, and images in base64 are not parsed at all."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from app.errors import InvalidRequest, Malformed, Problem, TooLarge
from app.http import json_text

MIB = 1 << 20


@pytest.mark.parametrize("unit", [b"[],", b"{},", b"1,", b'"\\n",'])
def test_a_text_of_too_many_parts_is_refused_before_anything_is_made_of_it(unit: bytes) -> None:
    text = b"[" + unit * MIB + b"1]"
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="too many values"):
            json_text.parse(text)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ['{"a": {"b": [1, "x", null, true]}}', '"\\u00e9"', "[]", "1.5", '{"ä": "😀"}'])
def test_a_text_is_parsed_as_by_the_standard_library(text: str) -> None:
    assert json_text.parse(text.encode()) == json.loads(text)
    assert json_text.parse_with_images(text.encode(), 1000, 1000) == json.loads(text)


def test_images_are_cut_out_and_come_back() -> None:
    image, other = "iVBOR" * 100_000 + "==", "A" * 5000
    value = {"inputs": [{"value": image, "id": "名前"}, {"value": other}, [other, "short"]], "model": 'a "quoted" one'}
    text = json.dumps(value, ensure_ascii=False).encode()
    assert json_text.parse_with_images(text, 1000, 1000) == value
    with pytest.raises(TooLarge, match="besides images"):
        json_text.parse_with_images(text, 1000, 100)


@pytest.mark.parametrize("text", ["é" * 5000, "\\n" * 100 + "a" * 5000, ": " + "a" * 5000])
def test_a_long_text_that_is_no_base64_counts_as_text(text: str) -> None:
    body = f'{{"value": "{text}"}}'.encode()
    assert json_text.parse_with_images(body, 1000, 20_000) == json.loads(body)
    with pytest.raises(TooLarge, match="besides images"):
        json_text.parse_with_images(body, 1000, 4096)


LONG = "A" * 5000


@pytest.mark.parametrize(
    "text",
    [f'"{LONG}"', f'{{"{LONG}": 1}}', f'{{"{LONG}" \n: "{LONG}"}}', f'["x\\"{LONG}"]', f'["x\\\\", "{LONG}"]'],
)  # fmt: skip
def test_a_long_text_is_itself_wherever_it_stands(text: str) -> None:
    assert json_text.parse_with_images(text.encode(), 1000, 20_000) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [(f'{{"{LONG}": 1, "{LONG}": 2}}', InvalidRequest), (f'["{LONG}\n"]', Malformed), (f'["{LONG}\0"]', Malformed)],
)
def test_a_long_text_is_held_to_the_same_rules(text: str, problem: type[Problem]) -> None:
    for parse in (
        lambda: json_text.parse(text.encode()),
        lambda: json_text.parse_with_images(text.encode(), 99, 20_000),
    ):
        with pytest.raises(problem):
            parse()


def test_an_object_of_too_many_fields_is_refused_with_its_place() -> None:
    text = json.dumps({"a": [{str(n): n for n in range(json_text.MOST_FIELDS + 1)}]}).encode()
    with pytest.raises(InvalidRequest) as caught:
        json_text.parse(text)
    assert [(fault.pointer, fault.code) for fault in caught.value.errors] == [("/a/0", "too_many_fields")]
