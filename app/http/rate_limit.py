"""Requests per second of API keys, and of addresses that send no valid key: a token bucket each, in memory.

A bucket is one number, the time at which it is full again (the generic cell rate algorithm, ITU-T I.371). A full bucket
needs no entry. Answers say what is left in the fields of draft-ietf-httpapi-ratelimit-headers-11.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from typing import NamedTuple

from starlette.requests import Request

from app.errors import RateLimited
from app.settings import Settings

POLICY = "requests"
BURST_S = 10.0  # a bucket holds the requests of so many seconds
MOST_BUCKETS = 10_000  # of which the one unused for longest is dropped
HEADERS_KEY = "rate_limit_headers"  # in the state of a request: header fields of its response
NETWORK_BITS = 64  # of an IPv6 address: those after them are one client's


class Allowance(NamedTuple):
    """What a bucket says to one request.

    Attributes:
        allowed: Whether there was a token for it.
        quota: Tokens of a full bucket.
        remaining: Whole tokens that are left.
        full_s: Seconds until the bucket is full.
        wait_s: Seconds until there is a token for one that was not allowed.
    """

    allowed: bool
    quota: int
    remaining: int
    full_s: float
    wait_s: float


class TokenBuckets:
    """The buckets of all clients, at most `most`."""

    def __init__(self, most: int = MOST_BUCKETS) -> None:
        self._most = most
        self._full_at: OrderedDict[str, float] = OrderedDict()  # the one used last is the last

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, client: str, per_s: float, now: float) -> Allowance:
        """Take a token, if there is one.

        Args:
            client: Whose bucket it is.
            per_s: Tokens that come in a second, above 0.
            now: In seconds, from any point on.
        """
        quota = max(1, math.floor(per_s * BURST_S))
        missing_s = max(0.0, self._full_at.get(client, now) - now)  # what has been taken, in seconds of refilling
        spare_s = quota / per_s - missing_s - 1 / per_s
        if spare_s < -1e-9:
            return Allowance(False, quota, 0, missing_s, -spare_s)
        missing_s += 1 / per_s
        self._full_at[client] = now + missing_s
        self._full_at.move_to_end(client)
        if len(self._full_at) > self._most:
            self._full_at.popitem(last=False)
        return Allowance(True, quota, math.floor(spare_s * per_s + 1e-6), missing_s, 0.0)


class RateLimiter:
    """Limits the requests of keys and of addresses. Only the event loop uses it.

    Args:
        settings: The rates of those who have none of their own.
    """

    def __init__(self, settings: Settings) -> None:
        self._buckets = TokenBuckets()
        self._per_address = settings.address_rate

    def limit_key(self, request: Request, key_id: str, per_s: float) -> None:
        """Count a request of a key that may send so many a second; RateLimited."""
        self._limit(request, f"key {key_id}", per_s, "This key")

    def limit_address(self, request: Request) -> None:
        """Count a request without a valid key; RateLimited."""
        if self._per_address:
            self._limit(request, f"address {network_of(request)}", self._per_address, "This address")

    def _limit(self, request: Request, client: str, per_s: float, who: str) -> None:
        allowance = self._buckets.take(client, per_s, time.monotonic())
        window_s = math.ceil(allowance.quota / per_s)
        request.scope["state"][HEADERS_KEY] = (
            (b"ratelimit-policy", f'"{POLICY}";q={allowance.quota};w={window_s}'.encode()),
            (b"ratelimit", f'"{POLICY}";r={allowance.remaining};t={math.ceil(allowance.full_s)}'.encode()),
        )
        if not allowance.allowed:
            detail = f"{who} may send {per_s:g} requests a second, and {allowance.quota} at once."
            raise RateLimited(POLICY, detail, retry_after_s=max(1, math.ceil(allowance.wait_s)))


def network_of(request: Request) -> str:
    """The address of the client; of IPv6 the network that one client has."""
    host = request.client.host if request.client else ""
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host.partition("%")[0], NETWORK_BITS), strict=False))
