"""Representations of models and aliases."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

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
    moved_default: bool = Field(
        description="Whether `default` moved to this model when it was published, or would have if it was not pinned"
    )
    default_reason: str | None = Field(description="Why it did or did not; null for models from before figures decided")
    created_at: datetime


def model_out(model: Model, aliases: list[str]) -> ModelOut:
    """The representation of a model; `aliases` are the names that point at it."""
    return ModelOut.model_validate(
        {**{n: getattr(model, n) for n in ModelOut.model_fields if n != "aliases"}, "aliases": aliases}
    )


class Pin(Strict):
    """Point an alias at a model, or back at the previous one."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["model_id"],
                    "properties": {"model_id": {"type": "string"}, "rollback": {"const": False}},
                },
                {"required": ["rollback"], "properties": {"model_id": {"type": "null"}, "rollback": {"const": True}}},
            ]
        }
    )

    model_id: Id | None = Field(default=None, description="The model to point at")
    rollback: bool = Field(default=False, description="Point at the previous model instead")


class Change(BaseModel):
    model_id: uuid.UUID | None = Field(description="null: the alias was removed")
    created_at: datetime


class PassedOver(BaseModel):
    model_id: uuid.UUID
    reason: str | None


class AliasOut(BaseModel):
    name: str
    model_id: uuid.UUID
    pinned: bool = Field(
        description="false: `default` follows the newest model whose figures are not below those of the one before, on "
        "the same data set and version of its labels; self-tests and baselines never move it"
    )
    reason: str | None = Field(description="Why `default` points there while it is not pinned; null for other aliases")
    passed_over: PassedOver | None = Field(description="The newest model, where `default` did not move to it, and why")
    updated_at: datetime | None
    history: list[Change] = Field(description="Newest first")


def alias_out(
    name: str, model: Model, row: Alias | None, changes: Sequence[AliasChange], passed_over: Model | None = None
) -> AliasOut:
    """The representation of an alias.

    Args:
        name: Of the alias.
        model: The model that it points at.
        row: None for `default` while nobody has set it.
        changes: Its history, newest first.
        passed_over: The newest model, where it did not move `default`.
    """
    return AliasOut(
        name=name,
        model_id=model.id,
        pinned=row is not None,
        reason=model.default_reason if row is None else None,
        passed_over=passed_over and PassedOver(model_id=passed_over.id, reason=passed_over.default_reason),
        updated_at=row.updated_at if row else None,
        history=[Change(model_id=c.model_id, created_at=c.created_at) for c in changes],
    )
