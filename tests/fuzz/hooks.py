"""What schemathesis is told beyond the OpenAPI document, which `tests/fuzz/__main__.py` names as SCHEMATHESIS_HOOKS."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis import Case, GenerationMode, HookContext

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")

# What a schema cannot describe: a value that only this server can have made, a time that lies ahead, names that differ,
# base64, the length of the body; lines of edits.
BEYOND_SCHEMAS = ("cursor", "expires_at", "annotator_columns", "upload-checksum", "upload-length")
TABLES = ("text/csv", "application/x-ndjson")


@schemathesis.hook
def filter_case(context: HookContext, case: Case[Any]) -> bool:
    """No case that counts as valid although it has a value of which its schema cannot tell whether it is."""
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return True
    headers = (name.lower() for name in case.headers or {})
    names = {*headers, *(case.query or {}), *(case.body if isinstance(case.body, dict) else ())}
    return case.media_type not in TABLES and names.isdisjoint(BEYOND_SCHEMAS)
