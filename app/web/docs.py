"""The OpenAPI document as one HTML page: no script, nothing loaded from other hosts, readable without a network."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

METHODS = ("get", "post", "put", "patch", "delete")
REFERENCE = "#/components/schemas/"
BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "maxLength": "characters ≤",
    "maxItems": "items ≤",
}


def page(document: dict[str, Any]) -> str:
    """The HTML of `/docs`; operations are grouped by their first tag."""
    groups: dict[str, list[str]] = {}
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                operation = operations[method]
                tag = (operation.get("tags") or ["service"])[0]
                groups.setdefault(tag, []).append(entry(path, method, operation, schemas))
    title = escape(document["info"]["title"])
    sections = "".join(f"<h2>{escape(name)}</h2>{''.join(entries)}" for name, entries in groups.items())
    types = "".join(component(name, schemas[name]) for name in sorted(used_types(document)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="/static/favicon.svg">'
        '<link rel="stylesheet" href="/static/css/base.css"></head><body><main>'
        f"<h1>{title}</h1><p>{escape(document['info'].get('description', ''))}</p>"
        f'<p>For programs: <a href="/openapi.json">openapi.json</a></p>{sections}'
        f"<h2>types</h2>{types}</main></body></html>"
    )


def entry(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    """The HTML of one operation of the document, whose named types are `schemas`."""
    rows = "".join(parameter(p) for p in operation.get("parameters", []))
    content = operation.get("requestBody", {}).get("content", {})
    bodies = "".join(body(kind, value.get("schema", {}), schemas) for kind, value in content.items())
    responses = "".join(
        f"<li><code>{escape(status)}</code> {escape(response.get('description', ''))}{answer(response)}</li>"
        for status, response in sorted(operation["responses"].items())
    )
    breakable = escape(path).replace("/", "/<wbr>")  # a narrow window breaks it between words
    return (
        f"<details><summary><code>{method.upper()} {breakable}</code> {escape(operation.get('summary', ''))}"
        "</summary>"
        f"<p>{escape(operation.get('description', ''))}</p>{table(rows)}{bodies}<ul>{responses}</ul></details>"
    )


def parameter(specification: dict[str, Any]) -> str:
    """The row of one parameter of an operation, from its entry in the document."""
    schema = specification.get("schema", {})
    return row(specification["name"], schema, required=specification.get("required", False), by=specification)


def body(media_type: str, schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """A request body in one media type: its type, and the fields of each object that it may be."""
    options = [option for union in ("oneOf", "anyOf") for option in schema.get(union, [])] or [schema]
    names = [option["$ref"].removeprefix(REFERENCE) for option in options if "$ref" in option]
    tables = [f"<p>Fields of {escape(name)}:</p>{fields(schemas[name])}" for name in names] or [fields(schema)]
    return f"<p>Body, <code>{escape(media_type)}</code>: {type_of(schema)}</p>{''.join(tables)}"


def answer(response: dict[str, Any]) -> str:
    """The type of a response in JSON, with a colon before it; empty where it has none."""
    schema = response.get("content", {}).get("application/json", {}).get("schema")
    return f": {type_of(schema)}" if schema else ""


def component(name: str, schema: dict[str, Any]) -> str:
    """The HTML of one named type of the document, which `type_of` links to."""
    return (
        f'<details><summary><code>{escape(name)}</code></summary><div id="{escape(name)}">'  # the target opens the fold
        f"<p>{escape(schema.get('description', ''))}</p>{fields(schema) or f'<p>{type_of(schema)}</p>'}</div></details>"
    )


def fields(schema: dict[str, Any]) -> str:
    """The table of an object's fields; empty for what has none."""
    required = schema.get("required", [])
    return table("".join(row(n, s, required=n in required, by=s) for n, s in schema.get("properties", {}).items()))


def table(rows: str) -> str:
    """A table of these rows; empty without any."""
    return f"<table><tbody>{rows}</tbody></table>" if rows else ""


def row(name: str, schema: dict[str, Any], *, required: bool, by: dict[str, Any]) -> str:
    """The row of a field or parameter: name, meaning, type with bounds and default.

    Args:
        name: As requests write it.
        schema: Its JSON Schema.
        required: Whether a request must have it.
        by: Where its description stands: the schema, or the entry of a parameter.
    """
    description = by.get("description", schema.get("description", ""))
    notes = [type_of(schema), *(["required"] if required else [])]
    if schema.get("default") is not None:
        notes.append(f"default <code>{escape(str(schema['default']))}</code>")
    return f"<tr><td><code>{escape(name)}</code></td><td>{escape(description)}</td><td>{', '.join(notes)}</td></tr>"


def type_of(schema: dict[str, Any]) -> str:
    """The type of a JSON Schema in words, as HTML: named types are links, bounds stand behind the type."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(REFERENCE))
        return f'<a href="#{name}">{name}</a>'
    for union in ("oneOf", "anyOf", "allOf"):
        if union in schema:
            return " or ".join(type_of(option) for option in schema[union])
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if values:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)
    if schema.get("type") == "array":
        kind = f"list of {type_of(schema.get('items', {}))}"
    else:
        kind = escape(str(schema.get("format", schema.get("type", "any"))))
    bounds = [f"{sign} {escape(str(schema[keyword]))}" for keyword, sign in BOUNDS.items() if keyword in schema]
    return " ".join([kind, *bounds])


def used_types(document: dict[str, Any]) -> set[str]:
    """Names of the types that operations refer to, directly or through other types."""
    schemas, names = document["components"]["schemas"], set[str]()
    waiting = list(references(document["paths"]))
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += references(schemas[name])
    return names


def references(value: Any) -> Iterator[str]:
    """Names of the types that a part of the document refers to."""
    if isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str):
            yield reference.removeprefix(REFERENCE)
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)
