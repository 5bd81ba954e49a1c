"""The API process. Connections are opened when the application starts and closed when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRouter
from starlette.concurrency import run_in_threadpool

from app import local_files, logs, settings, version
from app.audit import routes as audit
from app.catalog import Catalog
from app.datasets import (
    draft_routes,
    export_routes,
    history_routes,
    label_edits,
    label_routes,
    resumable_routes,
    upload_service,
    uploads,
    vote_routes,
)
from app.datasets import routes as datasets
from app.db import session as db
from app.http import connection, health_routes, openapi, problems, security
from app.http.access import KeyCache
from app.http.metrics import RequestMetrics
from app.http.rate_limit import RateLimiter
from app.http.routing import AllowedMethods
from app.http.sessions import SessionCache
from app.jobs import comparison_routes, methods_routes, results_routes
from app.jobs import routes as jobs
from app.jobs.schemas import JobRequestParser
from app.jobs.stream import EventPoller, EventReader, stream_capacity
from app.keys import routes as keys
from app.login import routes as login
from app.login.provider import Provider
from app.login.session_check import SessionCheck
from app.models import routes as models
from app.models.registry_cache import ModelRegistryCache
from app.networks import routes as networks
from app.notifier import Notifier
from app.predictions import routes as predictions
from app.predictions.gateway import Gateway
from app.predictions.requests import memory_capacity
from app.settings import Settings
from app.shared_storage import SWEEP_S, open_storage
from app.storage import Storage
from app.web import routes as web

ROUTERS: tuple[APIRouter, ...] = (
    predictions.router,  # the busiest first: routes are tried in this order
    datasets.router,
    draft_routes.router,  # before the routes of versions, as `draft` is no version
    label_routes.router,
    resumable_routes.router,
    export_routes.router,
    vote_routes.router,
    history_routes.router,
    methods_routes.router,
    jobs.router,
    results_routes.router,
    comparison_routes.router,
    models.router,
    networks.router,
    keys.router,
    audit.router,
    health_routes.router,
    web.router,
)
ABOUT = "Trains image classifiers on images with noisy labels and serves them with localization masks."


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open what the application needs, and close it at its end."""
    state = app.state
    config: Settings = state.settings
    state.storage.create()
    state.engine = db.connect(config)
    state.notifier = Notifier(config)
    state.key_cache = KeyCache(config, state.engine)
    state.login_provider = Provider(config)
    check = SessionCheck(config, state.engine, state.login_provider)
    state.session_cache = SessionCache(config, state.engine, state.key_cache, check) if config.login_enabled else None
    caches = [cache for cache in (state.key_cache, state.session_cache) if cache is not None]
    tasks = [asyncio.create_task(cache.keep_last_used(config.key_usage_s)) for cache in caches]
    tasks.append(asyncio.create_task(sweep_files(state.storage, config)))
    state.model_registry = ModelRegistryCache(state.engine)
    state.event_reader = EventReader(state.engine)
    state.event_poller = EventPoller(state.event_reader, config.event_poll_s)
    state.gateway = Gateway(
        config.inference_addresses,
        connect_timeout_s=config.connect_timeout_s,
        deadline_s=config.predict_deadline_s,
        max_in_flight=config.predict_queue,
        secret=config.inference_secret_bytes,
    )
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for cache in caches:
            await run_in_threadpool(cache.write_last_used)
        if state.session_cache is not None:
            await state.session_cache.close()
        await state.login_provider.close()
        await state.event_poller.close()
        await state.event_reader.close()
        state.gateway.close()
        state.notifier.close()
        state.engine.dispose()


async def sweep_files(files: Storage, config: Settings) -> None:
    """Keep this host's copies of files from the object store in order, until the task is cancelled."""
    while True:
        await asyncio.sleep(SWEEP_S)
        await run_in_threadpool(files.sweep, config.orphan_files_s, config.upload_expires_s)


def create_app(config: Settings, catalog: Catalog | None = None) -> FastAPI:
    """The application; nothing is opened before it starts.

    Args:
        catalog: What can be trained; the committed catalog by default.
    """
    app = FastAPI(
        title="DeNLL",
        version=version.current(),
        description=ABOUT,
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,  # every response but 2xx, 304 and that of a login is a problem document
        telemetry={"tracing": False, "metrics": False, "logs": False},  # not collected, and checked in every request
    )
    app.state.settings = config
    app.state.catalog = catalog or Catalog.load()
    app.state.job_parser = JobRequestParser(app.state.catalog)
    app.state.storage = open_storage(config)
    app.state.upload_capacity = upload_service.upload_capacity(config)
    app.state.rate_limiter = RateLimiter(config)
    app.state.prediction_memory = memory_capacity(config)
    app.state.event_streams = stream_capacity(config)
    app.state.exports = export_routes.export_capacity(config)
    app.state.request_metrics = RequestMetrics()
    app.state.started_at = time.monotonic()
    routers = (*ROUTERS, login.router) if config.login_enabled else ROUTERS
    app.state.allowed_methods = AllowedMethods(routers)
    for router in routers:
        app.router.routes.extend(router.routes)  # they have no prefix; `include_router` would build each a second time
    problems.install(app)
    openapi.install(
        app,
        lambda: (
            app.state.job_parser.schemas()
            | predictions.body_schemas()
            | label_edits.body_schemas()
            | uploads.body_schemas()
        ),
    )
    stack = app.build_middleware_stack()
    app.middleware_stack = security.SecurityMiddleware(stack, settings=config, metrics=app.state.request_metrics)
    return app


def main() -> None:
    config = settings.current()
    local_files.keep_private()
    logs.configure(config.log_level, process="api")
    app = create_app(config)
    # Garbage collection took a fifth of the CPU (docs/log.md): exclude what was imported, and collect less often.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    uvicorn.run(
        app,
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,  # an open event stream must not block the end for ever
        http=connection.limited_protocol(config),
        ws="none",
    )


if __name__ == "__main__":
    main()
