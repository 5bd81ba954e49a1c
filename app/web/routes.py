"""The web page, the API documentation, and the pages of problems. The web page is a client of the public API."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from email.utils import formatdate
from pathlib import Path
from typing import Annotated

from fastapi import Path as PathParameter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.errors import NotFound
from app.http import routing
from app.http.access import OPEN
from app.http.routing import AnyQueryRoute, Router
from app.web import docs, problem_pages

router = Router(include_in_schema=False)
FOLDER = Path(__file__).with_name("static")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".map": "application/json",
}
# Images may be blob: (a file that the user dropped) and data:; everything else comes from this service.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "X-Frame-Options": "DENY", "Cache-Control": "no-cache"}
IMPORT_MAP = re.compile(r'<script type="importmap">(.*?)</script>', re.DOTALL)


@router.get("/", dependencies=[OPEN])
def root() -> Response:
    return Response(status_code=307, headers={"Location": "/ui/"})


def page(request: Request) -> Response:
    """The page, at the address of any of its views: it reads the address itself."""
    response = static(request, "index.html", login=request.app.state.settings.login_enabled)
    response.headers["Content-Security-Policy"] = page_policy()
    return response


for path in ("/ui", "/ui/{view:path}"):
    router.add_api_route(path, page, dependencies=[OPEN], route_class_override=AnyQueryRoute)


@functools.cache
def files() -> dict[str, Path]:
    """The files of the page by their names in the folder."""
    return {str(p.relative_to(FOLDER)): p for p in FOLDER.rglob("*") if p.is_file() and p.suffix in MEDIA_TYPES}


@functools.cache
def page_policy() -> str:
    """The policy of the page. A browser takes an import map only from the page itself, so its hash is allowed."""
    match = IMPORT_MAP.search((FOLDER / "index.html").read_text())
    assert match is not None, "the page has an import map"
    digest = base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
    return POLICY.replace("script-src 'self'", f"script-src 'self' 'sha256-{digest}'")


@router.get("/favicon.ico", dependencies=[OPEN])
def favicon(request: Request) -> Response:
    return static(request, "favicon.svg" if (FOLDER / "favicon.svg").is_file() else "favicon.ico")


@router.get("/openapi.json", dependencies=[OPEN])
def openapi(request: Request) -> Response:
    """Made in a thread: it takes a while the first time."""
    return routing.conditional(request, JSONResponse(request.app.openapi()))


@router.get("/docs", dependencies=[OPEN])
def documentation(request: Request) -> Response:
    html = docs.page(request.app.openapi())
    return routing.conditional(request, Response(html, 200, HEADERS, MEDIA_TYPES[".html"]))


@router.get("/problems/{code}", dependencies=[OPEN])
def problem(request: Request, code: Annotated[str, PathParameter(max_length=100)]) -> Response:
    """What the `type` of a problem document points to: HTML for a browser, JSON for everything else."""
    text = problem_pages.texts().get(code.replace("-", "_"))
    if text is None or "_" in code:
        raise NotFound("There is no problem of this name.")
    if "text/html" in request.headers.get("accept", ""):
        response = Response(problem_pages.html(text), 200, HEADERS, MEDIA_TYPES[".html"])
    else:
        response = JSONResponse(problem_pages.document(text))
    response.headers["Vary"] = "Accept"
    return routing.conditional(request, response)


@router.get("/static/{name:path}", dependencies=[OPEN])
def file(request: Request, name: Annotated[str, PathParameter(max_length=200)]) -> Response:
    return static(request, name)


def static(request: Request, name: str, *, login: bool = False) -> Response:
    """One file of the folder, by a name among those that exist: no path of a client is opened.

    Args:
        login: Of the page: whether people can log in. It must not ask for a session where there are none.
    """
    path = files().get(name)
    if path is None:
        raise NotFound("There is nothing at this path.")
    data = path.read_bytes()
    if login:
        data = data.replace(b"<body>", b"<body data-login>", 1)
    headers = HEADERS | {
        "ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"',
        "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True),
    }
    return routing.conditional(request, Response(data, 200, headers, MEDIA_TYPES[path.suffix]))
