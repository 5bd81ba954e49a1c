"""Models this process has served before: a prediction on a known model needs no database (law 8).

A published model never changes, so an id is remembered for good; an alias is asked for again every two seconds, and
keeps its last answer while the database is away.
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

ALIAS_FRESH_S = 2.0
REMEMBERED = 1024


class ResolvedModel(NamedTuple):
    """What an answer says of the model that made it."""

    id: uuid.UUID
    alias: str | None
    digest: str
    method: str


class ModelRegistryCache:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: dict[str, tuple[ResolvedModel, float]] = {}
        self._lock = threading.Lock()

    async def resolve(self, name: str) -> ResolvedModel:
        """The model of an id or alias; ModelNotFound, AliasNotFound, NotReady, DatabaseUnavailable."""
        remembered = self._seen.get(name)
        if remembered and (remembered[0].alias is None or time.monotonic() - remembered[1] < ALIAS_FRESH_S):
            return remembered[0]
        try:
            return await run_in_threadpool(self._look_up, name)
        except DatabaseUnavailable:
            if remembered:
                return remembered[0]
            raise

    def clear(self) -> None:
        """A model was deleted or an alias moved, here: ask again."""
        with self._lock:
            self._seen.clear()

    def _look_up(self, name: str) -> ResolvedModel:
        with db.transaction(self._engine, read_only=True) as session:
            model, alias = service.resolve(session, name)
            served = ResolvedModel(model.id, alias, model.digest, model.method)
        with self._lock:
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            self._seen[name] = (served, time.monotonic())
        return served
