"""The OpenAPI document as one HTML page: no script, nothing loaded from other hosts, readable without a network."""

from __future__ import annotations

from html import escape
from typing import Any

METHODS = ("get", "post", "put", "patch", "delete")


def page(document: dict[str, Any]) -> str:
    """The HTML of `/docs`; operations are grouped by their first tag."""
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                operation = operations[method]
                groups.setdefault((operation.get("tags") or ["service"])[0], []).append(entry(path, method, operation))
    title = escape(document["info"]["title"])
    sections = "".join(f"<h2>{escape(name)}</h2>{''.join(entries)}" for name, entries in groups.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="/static/favicon.svg">'
        '<link rel="stylesheet" href="/static/css/base.css"></head><body><main>'
        f"<h1>{title}</h1><p>{escape(document['info'].get('description', ''))}</p>"
        f'<p>For programs: <a href="/openapi.json">openapi.json</a></p>{sections}</main></body></html>'
    )


def entry(path: str, method: str, operation: dict[str, Any]) -> str:
    """The HTML of one operation of the document."""
    rows = "".join(parameter(p) for p in operation.get("parameters", []))
    table = f"<table><tbody>{rows}</tbody></table>" if rows else ""
    media_types = ", ".join(escape(kind) for kind in operation.get("requestBody", {}).get("content", {}))
    responses = "".join(
        f"<li><code>{escape(status)}</code> {escape(response.get('description', ''))}</li>"
        for status, response in sorted(operation["responses"].items())
    )
    return (
        f"<details><summary><code>{method.upper()} {escape(path)}</code> {escape(operation.get('summary', ''))}"
        "</summary>"
        f"<p>{escape(operation.get('description', ''))}</p>{table}"
        f"{f'<p>Body: {media_types}</p>' if media_types else ''}<ul>{responses}</ul></details>"
    )


def parameter(specification: dict[str, Any]) -> str:
    """The row of one parameter of an operation, from its entry in the document."""
    schema = specification.get("schema", {})
    bounds = {k: v for k, v in schema.items() if k not in {"title", "description", "anyOf", "$ref"}}
    facts = ", ".join(f"{k}: {v}" for k, v in bounds.items())
    description = escape(specification.get("description", schema.get("description", "")))
    name = escape(specification["name"])
    return f"<tr><td><code>{name}</code></td><td>{description}</td><td>{escape(facts)}</td></tr>"
