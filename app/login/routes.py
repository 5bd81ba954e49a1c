"""/login and /session: people log in at an OpenID Connect provider (authorization code flow, PKCE) and get a session.

The browser's cookie holds a secret from which state, nonce and code verifier of a login are derived: an answer of the
provider counts only in the browser that asked for it, once, and nothing that is stored or sent tells the secret. These
routes exist only where a provider is configured.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import uuid
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import BackgroundTasks, Query
from pydantic import AfterValidator
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.db import session as db
from app.errors import KeyNotFound, LoginDenied, LoginExpired, LoginNotVerified, LoginUnavailable, NoAccess, Problem
from app.http import access
from app.http.access import ADMIN, OPEN, By, unauthenticated
from app.http.deps import Transaction
from app.http.openapi import problems
from app.http.routing import Route, Router
from app.http.sessions import Cookie, SessionCache, csrf_token, new_secret
from app.login import pages, service
from app.login.provider import CALLBACK, RETRY_S, Provider
from app.login.schemas import SessionOut
from app.settings import Settings
from ml.formats.errors import printable

log = logging.getLogger(__name__)

# A path of ours: a second slash or a backslash after the first would make the next part a host.
LOCAL_PATH = r"^/([A-Za-z0-9_.~!$&'()*+,;=:@%?#-][A-Za-z0-9_.~!$&'()*+,;=:@%/?#-]*)?$"
NO_STORE = {"Cache-Control": "no-store"}
OUTAGES = ("server_error", "temporarily_unavailable")  # errors of a provider that pass


class PageRoute(Route):
    """A route that a browser is sent to: its problems are pages where the browser would show them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_readably(request: Request) -> Response:
            try:
                return await handle(request)
            except (LoginDenied, LoginExpired, LoginNotVerified, LoginUnavailable, NoAccess) as problem:
                log.warning("login refused: %s", problem.detail, extra={"fields": {"code": problem.code}})
                if not pages.wants_html(request):
                    raise
                return pages.problem_page(request, problem)

        return handle_readably


class CallbackRoute(PageRoute):
    """A route whose query a provider writes, with parameters of its own besides those that we know."""

    def check_query(self, parameters: QueryParams) -> None:
        super().check_query(
            QueryParams([(name, value) for name, value in parameters.multi_items() if name in self.query_names])
        )


router = Router(tags=["login"])


def not_login(path: str) -> str:
    """The same path; ValueError if it would log in again."""
    if path.startswith("/login"):
        raise ValueError("must lead elsewhere than to the login")
    return path


ReturnTo = Annotated[
    str,
    Query(max_length=500, pattern=LOCAL_PATH, description="Path of this service to which the browser returns"),
    AfterValidator(not_login),
]


def derive(secret: str, purpose: Literal["state", "nonce", "code_verifier"]) -> str:
    """One of the values of a login, 64 characters. None of them tells the secret or another one."""
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def login_cookie(settings: Settings) -> Cookie:
    """The cookie that holds the secret of a login."""
    return Cookie(settings, "denll-login")


async def login(request: Request, next: ReturnTo = "/") -> Response:
    """Send the browser to the provider, to log in there."""
    state = request.app.state
    state.rate_limiter.limit_address(request)
    secret, provider = new_secret(), _provider(request)
    url = await provider.authorization_url(
        state=derive(secret, "state"), nonce=derive(secret, "nonce"), code_verifier=derive(secret, "code_verifier")
    )

    def begin() -> None:
        with db.transaction(state.engine) as session:
            service.begin(session, secret, next)

    await run_in_threadpool(begin)
    response = RedirectResponse(url, 303, NO_STORE)
    login_cookie(state.settings).set(response, secret, service.PENDING_S)
    return response


async def callback(
    request: Request,
    code: Annotated[str | None, Query(max_length=8192)] = None,
    state: Annotated[str | None, Query(max_length=200)] = None,
    error: Annotated[str | None, Query(max_length=200)] = None,
    error_description: Annotated[str | None, Query(max_length=2000)] = None,
    iss: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:
    """The provider sends the browser here: begin a session, and return to where the login was begun."""
    app_state = request.app.state
    settings: Settings = app_state.settings
    app_state.rate_limiter.limit_address(request)

    # Only the browser that began this login may finish it, and only once.
    secret = login_cookie(settings).read(request)
    again = f"Begin again at {settings.public_origin}/login."
    if not secret or not hmac.compare_digest((state or "").encode(), derive(secret, "state").encode()):
        raise LoginExpired(f"This browser has not begun this login here. {again}")

    def take() -> str | None:
        with db.transaction(app_state.engine) as session:
            return service.take(session, secret)

    return_to = await run_in_threadpool(take)
    if return_to is None:
        raise LoginExpired(f"This login took too long, or was finished already. {again}")

    # Who is it, and what may they do?
    if error is not None or not code:
        raise refused(error or "no code", error_description or "")
    identity = await _provider(request).identify(
        code=code, issuer=iss, nonce=derive(secret, "nonce"), code_verifier=derive(secret, "code_verifier")
    )
    scopes = service.scopes_of(settings, identity.values)
    if identity.refresh_token is None and settings.session_check_s:
        log.warning("the provider gave no refresh token: this session is not checked before it ends")
    sessions: SessionCache = app_state.session_cache

    def open_session() -> str | None:
        with db.transaction(app_state.engine) as session:
            if not scopes:
                service.end_sessions_of(session, identity.person)
                return None
            return service.open_session(
                session,
                identity.person,
                scopes,
                replaced=sessions.cookie.read(request) or "",
                settings=settings,
                refresh_token=identity.refresh_token,
                request_id=request.state.request_id,
            )

    session_id = await run_in_threadpool(open_session)
    _sessions(request).clear()
    if session_id is None:
        raise NoAccess(f"{printable(identity.person.subject, 100)} is in no group that may use this service.")
    response = RedirectResponse(settings.public_origin + return_to, 303, NO_STORE)
    sessions.cookie.set(response, session_id, settings.session_s)
    login_cookie(settings).delete(response)
    return response


router.add_api_route(
    "/login",
    login,
    status_code=303,
    response_class=RedirectResponse,
    dependencies=[OPEN],
    responses=problems(LoginUnavailable),
    route_class_override=PageRoute,
)
router.add_api_route(
    CALLBACK,
    callback,
    status_code=303,
    response_class=RedirectResponse,
    dependencies=[OPEN],
    responses=problems(LoginExpired, LoginDenied, LoginUnavailable),
    route_class_override=CallbackRoute,
)


@router.get("/session", dependencies=[OPEN], response_model=SessionOut)
async def current(request: Request, response: Response) -> SessionOut:
    """Who is logged in, and the token that changing requests must carry; 401 without a session."""
    session_id = await _authenticate(request)

    def get() -> SessionOut:
        with db.transaction(request.app.state.engine, read_only=True) as session:
            rows = service.get(session, session_id)
            if rows is None:
                raise unauthenticated("This session has ended: log in again.")
            row, person = rows
            return SessionOut(
                person_id=person.id,
                name=person.name,
                subject=person.subject or "",
                scopes=row.scopes,
                created_at=row.created_at,
                expires_at=row.expires_at,
                csrf_token=csrf_token(session_id),
            )

    response.headers["Cache-Control"] = "no-store"
    return await run_in_threadpool(get)


@router.post("/logout", status_code=204, dependencies=[OPEN], response_class=Response)
async def logout(request: Request) -> Response:
    """End the session of this browser. The login at the provider stays."""
    session_id = await _authenticate(request)
    by = access.actor_of(request)

    def end() -> None:
        with db.transaction(request.app.state.engine) as session:
            service.end_session(session, session_id, by)

    await run_in_threadpool(end)
    _sessions(request).clear()
    response = Response(status_code=204)
    _sessions(request).cookie.delete(response)
    return response


@router.delete("/sessions", status_code=204, dependencies=[ADMIN], responses=problems(KeyNotFound))
def end_all(
    session: Transaction,
    by: By,
    request: Request,
    background: BackgroundTasks,
    person_id: Annotated[
        uuid.UUID | None, Query(description="Person whose sessions end; by default everybody's")
    ] = None,
) -> None:
    """End sessions: at once in this process, within five seconds in others. People can log in again."""
    service.end_all(session, person_id, by)
    background.add_task(_sessions(request).clear)


def refused(error: str, description: str) -> Problem:
    """The problem for an error that the provider sent back; its words go into the log alone."""
    log.warning("the provider sent back %s: %s", printable(error, 100), printable(description, 200))
    if error in OUTAGES:
        return LoginUnavailable("The login provider cannot log anybody in now.", retry_after_s=RETRY_S)
    if error == "access_denied":
        return LoginDenied("The login was cancelled, or the provider does not allow it.")
    return LoginDenied("The provider sent the browser back without a login.")


async def _authenticate(request: Request) -> str:
    """The id of the session that a request shows, whose person becomes `request.state.principal`; Unauthenticated."""
    session_id = _sessions(request).cookie.read(request)
    if session_id is None or "authorization" in request.headers:
        request.app.state.rate_limiter.limit_address(request)
        raise unauthenticated("There is no session here: log in.")
    request.state.principal = await access.authenticate(request)
    return session_id


def _sessions(request: Request) -> SessionCache:
    sessions: SessionCache = request.app.state.session_cache
    return sessions


def _provider(request: Request) -> Provider:
    provider: Provider = request.app.state.login_provider
    return provider
