"""Settings refuse what cannot work, before anything starts, in words that name the variable."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.settings import RENAMED, Settings


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        ("auto", ("auto",)),
        ("cpu", ("cpu",)),
        ("cuda", ("cuda",)),
        ("cuda:1", ("cuda:1",)),
        ("cuda:1, cuda:0", ("cuda:1", "cuda:0")),
        ("cpu,cpu", ("cpu", "cpu")),
    ],
)
def test_devices_are_named_in_their_order(devices: str, names: tuple[str, ...]) -> None:
    assert Settings(devices=devices).device_names == names


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_in_the_environment_is_refused_with_the_new_one(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"DENLL_{old}", "1")
    with pytest.raises(ValidationError, match=rf"DENLL_{old} is now DENLL_{new}\b"):
        Settings()


def test_every_new_name_of_a_renamed_setting_is_a_setting() -> None:
    assert {name.lower() for name in RENAMED.values()} <= Settings.model_fields.keys()
    assert not {name.lower() for name in RENAMED} & Settings.model_fields.keys()


@pytest.mark.parametrize(
    "devices",
    [
        "",
        "gpu",
        "cuda:",
        "cuda:-1",
        "auto,auto",
        "cuda,cuda",
        "cpu,cuda:0",
        "cuda:0,cuda:0",
        "cuda:0,",
        "cpu" + ",cpu" * 8,
    ],
)
def test_devices_that_make_no_sense_are_refused_by_the_variables_name(devices: str) -> None:
    with pytest.raises(ValidationError, match="DENLL_DEVICES must be"):
        Settings(devices=devices)
