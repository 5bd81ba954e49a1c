"""Representations of models and aliases."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from app.db.tables import Alias, AliasChange, Model
from app.http.fields import Id, Strict

AliasName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9._-]{0,62}$")]


class ModelOut(BaseModel):
    id: uuid.UUID
    name: str | None
    job_id: uuid.UUID | None
    dataset_id: uuid.UUID | None
    method: str
    network: str
    classes: list[str]
    digest: str
    size_bytes: int
    metrics: dict[str, Any]
    spec: dict[str, Any]
    aliases: list[str]
    created_at: datetime


def model_out(model: Model, aliases: list[str]) -> ModelOut:
    """The representation of a model; `aliases` are the names that point at it."""
    return ModelOut.model_validate(
        {**{n: getattr(model, n) for n in ModelOut.model_fields if n != "aliases"}, "aliases": aliases}
    )


class Pin(Strict):
    """Point an alias at a model, or back at the previous one."""

    model_id: Id | None = Field(default=None, description="The model to point at")
    rollback: bool = Field(default=False, description="Point at the previous model instead")


class Change(BaseModel):
    model_id: uuid.UUID | None = Field(description="null: the alias was removed")
    created_at: datetime


class AliasOut(BaseModel):
    name: str
    model_id: uuid.UUID
    pinned: bool = Field(description="false: `default` follows the newest succeeded training")
    updated_at: datetime | None
    history: list[Change] = Field(description="Newest first")


def alias_out(name: str, model_id: uuid.UUID, row: Alias | None, changes: Sequence[AliasChange]) -> AliasOut:
    """The representation of an alias.

    Args:
        model_id: The model that it points at.
        row: None for `default` while nobody has set it.
        changes: Its history, newest first.
    """
    return AliasOut(
        name=name,
        model_id=model_id,
        pinned=row is not None,
        updated_at=row.updated_at if row else None,
        history=[Change(model_id=c.model_id, created_at=c.created_at) for c in changes],
    )
