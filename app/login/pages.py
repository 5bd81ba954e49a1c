"""Problems of a login as a page: who meets them looks at a browser, not at a document."""

from __future__ import annotations

from html import escape

from starlette.requests import Request
from starlette.responses import Response

from app.errors import Problem
from app.web import problem_pages
from app.web.routes import HEADERS, MEDIA_TYPES


def wants_html(request: Request) -> bool:
    """Whether a browser shows the response to somebody."""
    return "text/html" in request.headers.get("accept", "")


def problem_page(request: Request, problem: Problem) -> Response:
    """A problem of a login in words, and the way back."""
    text = problem_pages.texts()[problem.code]
    body = (
        f"<p>{escape(problem.detail)}</p><p>{escape(text.remedy)}</p>"
        '<p><a href="/login">Log in again</a> · <a href="/">To the page</a></p>'
        f"<p>Request <code>{escape(request.state.request_id)}</code></p>"
    )
    headers = {**HEADERS, "Cache-Control": "no-store", "Vary": "Accept", **problem.headers}
    html = problem_pages.html_of(text.title, body)
    return Response(html, problem.http_status, headers, MEDIA_TYPES[".html"])
