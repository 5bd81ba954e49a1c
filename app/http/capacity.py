"""A capacity that requests share: places for uploads, places for event streams, bytes of bodies in memory.

It is bounded in common and for each API key. A request that finds too little left waits briefly and is then refused.
While it waits, bodies that arrive too slowly lose what they hold: it is for those who use it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from starlette.requests import Request

from app.errors import Problem
from app.http import bodies
from app.http.bodies import CountedBody
from app.http.callers import Principal
from app.settings import Settings

Refusal = Callable[[str], Problem]  # makes the problem of a sentence that names the limit


class Capacity:
    """What the requests of this process share. Only the event loop uses it.

    Args:
        total: The most that is held at once.
        per_key: The most that one API key holds at once; callers without a key share `total` alone.
        settings: How slow a body may be, and how long (`contended_*`).
        unit: What is counted, in the plural, for messages.
        refusal: The problem of a request that gets nothing.
        wait_s: How long a request waits before it is refused.
    """

    def __init__(
        self, total: int, per_key: int, settings: Settings, *, unit: str, refusal: Refusal, wait_s: float = 0.0
    ) -> None:
        self._total, self._per_key, self._wait_s = total, per_key, wait_s
        self._grace_s, self._least_bytes_per_s = settings.contended_grace_s, settings.contended_bytes_per_s
        self._unit, self._refusal = unit, refusal
        self._held = 0
        self._held_by: Counter[str] = Counter()  # key: what it holds
        self._holders: set[Hold] = set()
        self._waiting: dict[Hold, asyncio.Future[None]] = {}  # in the order of their arrival

    def hold(self, request: Request, amount: int = 1, *, while_body_arrives: bool = False) -> Hold:
        """`async with` this, the request holds `amount`; raises the problem of `refusal` if it cannot.

        Args:
            request: Of an authorised caller.
            amount: At most `total` and `per_key`.
            while_body_arrives: Whether others may take its place as long as its body arrives too slowly.
        """
        principal: Principal = request.state.principal
        return Hold(self, principal.id, amount, request.scope[bodies.SCOPE_KEY] if while_body_arrives else None)

    async def enter(self, hold: Hold) -> None:
        """Let the hold begin, at once or after others."""
        if not self._waiting and self._fits(hold):
            self._begin(hold)
            return
        entry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[hold] = entry
        try:
            await self._await_entry(hold, entry)
        except BaseException:
            self.release(hold)
            raise
        finally:
            self._waiting.pop(hold, None)
            self._admit_waiting()
        if not entry.done():
            raise self._refusal(self._reason(hold))

    async def _await_entry(self, hold: Hold, entry: asyncio.Future[None]) -> None:
        """Return when the hold has begun, or has waited long enough."""
        self._displace_slow(hold)
        if not entry.done() and self._wait_s:
            await asyncio.wait([entry], timeout=self._wait_s)
        if not entry.done():  # who was in its grace before may count as slow by now
            self._displace_slow(hold)

    def release(self, hold: Hold) -> None:
        """End the hold, if it has not ended yet, and let others begin."""
        if hold in self._holders:
            self._holders.remove(hold)
            self._held -= hold.amount
            self._held_by[hold.key] -= hold.amount
            if not self._held_by[hold.key]:
                del self._held_by[hold.key]
            self._admit_waiting()

    def _begin(self, hold: Hold) -> None:
        self._holders.add(hold)
        self._held += hold.amount
        self._held_by[hold.key] += hold.amount
        hold.since = asyncio.get_running_loop().time()

    def _lacking(self, hold: Hold) -> tuple[int, int]:
        """How much would be held too much with this hold: in common, and by its key."""
        own = self._held_by[hold.key] + hold.amount - self._per_key if hold.key else 0
        return self._held + hold.amount - self._total, own

    def _fits(self, hold: Hold) -> bool:
        return max(self._lacking(hold)) <= 0

    def _admit_waiting(self) -> None:
        """Let those begin who wait, in order; a key that holds its share does not stop others."""
        for hold, entry in list(self._waiting.items()):
            if self._fits(hold):
                del self._waiting[hold]
                self._begin(hold)
                entry.set_result(None)
            elif self._lacking(hold)[0] > 0:
                break

    def _displace_slow(self, hold: Hold) -> None:
        """End the holds of the slowest bodies, if that makes room for this one; otherwise of none."""
        slow = sorted((other for other in self._holders if self._is_slow(other)), key=lambda other: other.bytes_per_s())
        common, own = self._lacking(hold)
        displaced = []
        for other in [*(o for o in slow if o.key == hold.key), *(o for o in slow if o.key != hold.key)]:
            if own > 0 or common > 0:
                displaced.append(other)
                common -= other.amount
                own -= other.amount if other.key == hold.key else 0
        if own <= 0 and common <= 0:
            for other in displaced:
                assert other.body is not None
                other.body.displace(self._least_bytes_per_s)
                self.release(other)
        self._admit_waiting()

    def _is_slow(self, hold: Hold) -> bool:
        held_s = asyncio.get_running_loop().time() - hold.since
        return held_s >= self._grace_s and hold.bytes_per_s() < self._least_bytes_per_s

    def _reason(self, hold: Hold) -> str:
        if self._lacking(hold)[1] > 0:
            return f"This key holds {self._held_by[hold.key]} of its {self._per_key} {self._unit}."
        return f"{self._held} of {self._total} {self._unit} are taken."


class Hold:
    """What one request holds of a capacity, between entering and leaving it.

    Attributes:
        amount: How much.
        key: Whose share it counts in: the id of an API key; "" is nobody's.
        body: The request's body, if the hold may end while that arrives slowly.
        since: When it began, in the event loop's time.
    """

    __slots__ = ("_capacity", "amount", "body", "key", "since")

    def __init__(self, capacity: Capacity, key: str, amount: int, body: CountedBody | None) -> None:
        self._capacity, self.key, self.amount, self.body = capacity, key, amount, body
        self.since = 0.0

    def bytes_per_s(self) -> float:
        """How fast its body arrives; infinite where that does not matter."""
        return self.body.bytes_per_s() if self.body is not None else float("inf")

    async def __aenter__(self) -> None:
        await self._capacity.enter(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._capacity.release(self)
