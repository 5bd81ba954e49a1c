"""Types of request fields that several slices share: ids, times, text without control characters, tags."""

from __future__ import annotations

import unicodedata
import uuid
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints


class Strict(BaseModel):
    """A request body: unknown fields and near-miss types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def plain(text: str) -> str:
    """The same text; ValueError if it has control characters."""
    if any(unicodedata.category(c) in {"Cc", "Cs"} for c in text):
        raise ValueError("control characters are not allowed")
    return text


def _text_of_uuid(value: object) -> object:
    if isinstance(value, str):
        try:
            return uuid.UUID(value)
        except ValueError:
            raise ValueError("this is not a UUID") from None
    return value


def _time_of_text(value: object) -> object:
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("this is not a time as in RFC 3339") from None
    return value


Text = Annotated[str, StringConstraints(max_length=200), AfterValidator(plain)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(plain)]
Id = Annotated[uuid.UUID, BeforeValidator(_text_of_uuid)]
Time = Annotated[AwareDatetime, BeforeValidator(_time_of_text)]
Tags = Annotated[dict[Name, Text], Field(max_length=32)]
