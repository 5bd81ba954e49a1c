"""Kombu's Redis transport with a check of what it reads: only a notification of ours reaches Celery.

A message that is not JSON or has another form ends kombu's consumer with an exception, and Celery logs the content of
messages that it does not understand. Both happen before a task could check anything, so the check is here.
"""

from __future__ import annotations

import base64
import json
import logging
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis

from app.notifier import TASKS

log = logging.getLogger(__name__)

JSON = "application/json"
NO_ARGUMENTS: tuple[list[Any], dict[str, Any]] = ([], {})
DECODING_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
dropped = 0  # messages since this process started


def install() -> None:
    """Have this process read `redis://`, `rediss://` and `redis+socket://` brokers with the check."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"


def parse_notification(message: Any) -> dict[str, Any]:
    """A decoded message reduced to what a notification consists of; one of DECODING_ERRORS when it is none."""
    headers, properties = message["headers"], message["properties"]
    if message["content-type"] != JSON or message["content-encoding"] != "utf-8":
        raise ValueError("another content type")
    if headers["task"] not in TASKS.values() or not isinstance(headers["id"], str):
        raise ValueError("another task")
    if not isinstance(properties["delivery_tag"], str) or properties["body_encoding"] != "base64":
        raise ValueError("another envelope")
    args, kwargs, _ = json.loads(base64.b64decode(message["body"], validate=True))
    if (args, kwargs) != NO_ARGUMENTS:
        raise ValueError("arguments")
    return {
        "body": message["body"],
        "content-type": JSON,
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": headers["task"], "id": headers["id"], "ignore_result": True},
        "properties": {
            "delivery_tag": properties["delivery_tag"],
            "delivery_info": {"exchange": "", "routing_key": ""},
            "body_encoding": "base64",
        },
    }


def drop(error: Exception) -> None:
    """Count a message that is not passed on. Of its content nothing is logged: an exception may quote it."""
    global dropped
    dropped += 1
    log.warning("a message that is no notification was dropped (%s); %d so far", type(error).__name__, dropped)


class Channel(redis.Channel):
    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # not in kombu's stubs
        except DECODING_ERRORS as error:  # kombu decodes before it delivers; errors of the connection are others
            drop(error)
            return True


class Transport(redis.Transport):
    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        try:
            notification = parse_notification(message)
        except DECODING_ERRORS as error:
            drop(error)
        else:
            super()._deliver(notification, queue)
