"""Caches which model a name stands for, so that a prediction needs no database once its model was looked up.

A published model never changes, so an id stays cached. An alias is looked up again after two seconds; while the
database is unavailable, its last model is used.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import NamedTuple

from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from app.db import session as db
from app.errors import DatabaseUnavailable
from app.models import service

ALIAS_TTL_S = 2.0
MOST_CACHED = 1024


class ResolvedModel(NamedTuple):
    """A model as a prediction's response names it."""

    id: uuid.UUID
    alias: str | None
    digest: str
    method: str


class ModelRegistryCache:
    """The models that names stood for at the last look-up; an alias is looked up again after `alias_ttl_s`."""

    def __init__(self, engine: Engine, *, alias_ttl_s: float = ALIAS_TTL_S) -> None:
        self._alias_ttl_s = alias_ttl_s
        self._engine = engine
        self._models: dict[str, tuple[ResolvedModel, float]] = {}
        self._lock = threading.Lock()

    async def resolve(self, name: str) -> ResolvedModel:
        """The model that a name stands for; raises as `service.resolve` does, or DatabaseUnavailable."""
        cached = self._models.get(name)
        if cached and (cached[0].alias is None or time.monotonic() - cached[1] < self._alias_ttl_s):
            return cached[0]
        try:
            return await run_in_threadpool(self._look_up, name)
        except DatabaseUnavailable:
            if cached:
                return cached[0]
            raise

    def clear(self) -> None:
        """Empty the cache: after a model was deleted or an alias moved, names are looked up in the database again."""
        with self._lock:
            self._models.clear()

    def _look_up(self, name: str) -> ResolvedModel:
        with db.transaction(self._engine, read_only=True) as session:
            model, alias = service.resolve(session, name)
            resolved = ResolvedModel(model.id, alias, model.digest, model.method)
        with self._lock:
            if len(self._models) >= MOST_CACHED:
                self._models.clear()
            self._models[name] = (resolved, time.monotonic())
        return resolved
