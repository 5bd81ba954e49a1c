"""Types of request fields that several slices share: ids, times, text without control characters, tags."""

from __future__ import annotations

import unicodedata
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints


class Strict(BaseModel):
    """A request body: unknown fields and near-miss types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def plain(text: str) -> str:
    """The same text; ValueError if it has control characters."""
    if not text.isprintable() and any(unicodedata.category(c) in {"Cc", "Cs"} for c in text):
        raise ValueError("control characters are not allowed")
    return text


def read_text(parse: Callable[[str], object], kind: str) -> BeforeValidator:
    """A validator that parses text, which strict models do not; its error says that the text is not `kind`."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except ValueError:
            raise ValueError(f"this is not {kind}") from None

    return BeforeValidator(read)


Text = Annotated[str, StringConstraints(max_length=200), AfterValidator(plain)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(plain)]
Id = Annotated[uuid.UUID, read_text(uuid.UUID, "a UUID")]
Time = Annotated[AwareDatetime, read_text(datetime.fromisoformat, "a time as in RFC 3339")]
VersionNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]  # of a data set's labels
Tags = Annotated[dict[Name, Text], Field(max_length=32)]
