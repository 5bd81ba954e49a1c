"""Dependencies of routes: a transaction that commits before the response is sent, settings, storage, notifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session
from starlette.requests import Request

from app.catalog import Catalog
from app.db import session as db
from app.notifier import Notifier
from app.settings import Settings
from app.storage import Storage


def _transaction(request: Request) -> Iterator[Session]:
    with db.transaction(request.app.state.engine) as session:
        yield session


def _read_session(request: Request) -> Iterator[Session]:
    with db.transaction(request.app.state.engine, read_only=True) as session:
        yield session


# scope="function": the commit, which follows the `yield`, runs before the response is sent. With FastAPI's default
# scope a request whose commit fails would still get a 202.
Transaction = Annotated[Session, Depends(_transaction, scope="function")]
ReadSession = Annotated[Session, Depends(_read_session, scope="function")]


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _storage(request: Request) -> Storage:
    storage: Storage = request.app.state.storage
    return storage


async def _notifier(request: Request) -> Notifier:
    notifier: Notifier = request.app.state.notifier
    return notifier


async def _catalog(request: Request) -> Catalog:
    catalog: Catalog = request.app.state.catalog
    return catalog


async def _request_id(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


Config = Annotated[Settings, Depends(_settings)]
Files = Annotated[Storage, Depends(_storage)]
Notifications = Annotated[Notifier, Depends(_notifier)]
TrainingCatalog = Annotated[Catalog, Depends(_catalog)]
RequestId = Annotated[str, Depends(_request_id)]
