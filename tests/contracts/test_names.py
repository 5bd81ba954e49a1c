"""A name that was given up stays so: tests/contracts/retired_names.toml keeps the list."""

from __future__ import annotations

import collections

import pytest

from tests.contracts import names


def test_no_retired_name_is_used() -> None:
    used = collections.Counter(use.name for use in names.uses())

    assert not used, "see where: python -m tests.contracts.names NAME"


@pytest.mark.parametrize(
    ("text", "retired"),
    [
        ("class JobDesk: ...", "desk"),
        ("def ring_bells(): ...", "bell"),
        ("# the ZYGOTE", "zygote"),
        ("given = 1", "given"),
        ("import x as trust", "trust"),
    ],
)
def test_a_retired_name_is_seen(text: str, retired: str) -> None:
    assert retired in {use.name for use in names.uses_in("example.py", text)}


@pytest.mark.parametrize(
    "text",
    ["from hypothesis import given\n\n@given()\ndef test(): ...", "# the given label, behind", "labels_given = 1"],
)
def test_an_innocent_use_is_not(text: str) -> None:
    assert not list(names.uses_in("example.py", text))
