"""The types of settings whose values are checked or parsed; the settings themselves are in `app.settings`."""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import re
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

Scope = Literal["read", "train", "predict", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "train", "predict", "admin")
MOST_DEVICES = 8  # of one host, for one job
DEVICES = re.compile(r"auto|cuda|cpu(\s*,\s*cpu)*|cuda:\d{1,2}(\s*,\s*cuda:\d{1,2})*")


def device_names(devices: str) -> tuple[str, ...]:
    """The device names in a comma-separated list."""
    return tuple(name.strip() for name in devices.split(","))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


def _parse_scopes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or "{}")
    except ValueError:
        raise ValueError('DENLL_LOGIN_SCOPES must be JSON such as {"labellers": ["read", "train"]}') from None


def _check_bucket(value: str) -> str:
    if not value:
        return value
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9._-]+)*/?", value):
        raise ValueError("DENLL_OBJECT_STORE must read s3://BUCKET or s3://BUCKET/PREFIX")
    if importlib.util.find_spec("s3fs") is None:
        raise ValueError("DENLL_OBJECT_STORE needs the package s3fs: install the extra `s3`, as in denll[s3]")
    return value


def _check_endpoint(value: str) -> str:
    parts = _split_url(value)
    if value and (parts is None or parts.username or parts.query or parts.fragment):
        raise ValueError("DENLL_OBJECT_STORE_ENDPOINT must be an http:// or https:// URL without user and query")
    return value


def _check_web_address(value: str) -> str:
    parts = _split_url(value)
    if value and (parts is None or parts.username or parts.query or parts.fragment or not value.isascii()):
        raise ValueError("this must be an https:// URL without user, query and fragment")
    if parts is not None and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("this must be an https:// URL; http:// is for loopback alone")
    return value


def _split_url(value: str) -> SplitResult | None:
    """The parts of an http or https URL; None for text that is none."""
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if valid and not re.search(r"[\s\\\x00-\x1f]", value) else None


def _check_devices(devices: str) -> str:
    names = device_names(devices)
    cpus, gpus = names.count("cpu"), len(set(names))
    fits = DEVICES.fullmatch(devices.strip()) and len(names) <= MOST_DEVICES
    if not fits or (len(names) > 1 and len(names) not in (cpus, gpus)):
        raise ValueError(
            f"DENLL_DEVICES must be auto, cpu, cuda or a list like cuda:0,cuda:1 of at most {MOST_DEVICES}, "
            "each GPU once (cpu,cpu is two CPU processes)"
        )
    return devices


Retention = Annotated[float | None, Field(ge=0.0), BeforeValidator(_empty_is_none)]  # seconds; None: for ever
OptionalSecret = Annotated[SecretStr | None, BeforeValidator(_empty_is_none)]
ScopesOfClaim = Annotated[dict[str, list[Scope]], NoDecode, BeforeValidator(_parse_scopes)]  # by value of the claim
BucketUrl = Annotated[str, AfterValidator(_check_bucket)]  # empty: none, as of the next two
EndpointUrl = Annotated[str, AfterValidator(_check_endpoint)]
WebAddress = Annotated[str, AfterValidator(_check_web_address)]  # http:// is for loopback alone
DeviceList = Annotated[str, AfterValidator(_check_devices)]  # in the order of their use
