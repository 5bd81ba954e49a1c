"""The queue in front of the model. While a forward pass runs, requests gather; the next pass takes all that waits.

No timer, no window: an idle model answers at once, a busy one in full batches. The queue is bounded, and says so at
once when it is full. Nothing here knows sockets.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from app.settings import Settings
from ml.errors import Failure, OutOfMemory
from worker.inference import results
from worker.inference.model_cache import ModelCache
from worker.inference.results import Decoded

log = logging.getLogger(__name__)

WAITING_BYTES = 256 * 1024 * 1024  # encoded images waiting, besides their number
THUMBNAIL_BYTES = 8 * 1024  # a JPEG of this size is decoded in a tenth of a millisecond
RETRY_S = 1
Reply = Callable[[dict[str, Any], Sequence[bytes]], object]


class Refused(Exception):
    """The whole request is refused."""

    def __init__(self, code: str, status: int, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.error = {"code": code, "status": status, "title": results.TITLES[code], "detail": detail}
        if retry_after_s is not None:
            self.error["retry_after_s"] = retry_after_s


@dataclass
class Request:
    """Encoded images of one caller, answered together."""

    id: str
    model: uuid.UUID
    images: list[bytes]
    options: dict[str, Any]
    deadline_s: float
    reply: Reply
    arrived: float = field(default_factory=time.monotonic)

    @property
    def late(self) -> bool:
        return time.monotonic() - self.arrived > self.deadline_s

    def refuse(self, refused: Refused) -> None:
        self.reply({"id": self.id, "error": refused.error}, ())


class Batcher:
    def __init__(self, settings: Settings, shelf: ModelCache) -> None:
        self._settings = settings
        self._shelf = shelf
        self._waiting: deque[Request] = deque()
        self._images = self._bytes = 0  # waiting
        self._changed = threading.Condition()
        self._ended = self._warming = False
        self._pool = ThreadPoolExecutor(max(2, settings.threads or 4), thread_name_prefix="decode")
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Refuse what waits, finish what is under way."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        self._pool.shutdown()

    def submit(self, requests: Iterable[Request]) -> None:
        """Let requests wait for the model, which learns of them together; what finds no room is refused at once."""
        with self._changed:
            for request in requests:
                size = sum(map(len, request.images))
                full = self._images + len(request.images) > self._settings.predict_queue
                if full or self._bytes + size > WAITING_BYTES:
                    request.refuse(overloaded())
                    continue
                self._waiting.append(request)
                self._images += len(request.images)
                self._bytes += size
            self._changed.notify()

    def warm(self) -> None:
        """Ask the model thread to have the newest model at hand when it has nothing else to do."""
        with self._changed:
            self._warming = True
            self._changed.notify()

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            if not batch:
                self._look_at_the_shelf()
            for model, requests in _by_model(self._in_time(batch)):
                self._predict(model, requests)

    def _look_at_the_shelf(self) -> None:
        try:
            self._shelf.forget_deleted()
            self._shelf.take_newest()
        except OSError as error:  # of a file system on the network; whoever asks for a model meets it too
            log.warning("the models cannot be looked at: %s", error)

    def _take(self) -> list[Request] | None:
        """Everything that waits, up to the batch limit; empty when there is time to warm a model; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._warming)
            if self._ended:
                for request in self._waiting:
                    request.refuse(unavailable("The inference process is ending."))
                return None
            batch: list[Request] = []
            count = 0
            while self._waiting and (not batch or count + len(self._waiting[0].images) <= self._settings.predict_batch):
                request = self._waiting.popleft()
                batch.append(request)
                count += len(request.images)
                self._bytes -= sum(map(len, request.images))
            self._images -= count
            if not batch:
                self._warming = False
            return batch

    def _in_time(self, batch: Iterable[Request]) -> Iterable[Request]:
        for request in batch:
            if request.late:
                request.refuse(too_late())
            else:
                yield request

    def _predict(self, model: uuid.UUID, requests: list[Request]) -> None:
        """One forward pass for everybody; when it fails, each request alone, so that a culprit fails alone."""
        try:
            self._pass(model, requests)
        except Exception as error:
            detail = "The model could not answer."
            if isinstance(error, Failure):
                detail = results.sentence(error.detail)
                log.warning("model %s: %s", model, error, exc_info=error.__cause__)
            else:
                log.exception("model %s, a batch of %d requests", model, len(requests))
            of_the_model = isinstance(error, Failure) and not isinstance(error, OutOfMemory)
            if len(requests) > 1 and not of_the_model:
                for request in requests:
                    self._predict(model, [request])
            else:
                for request in requests:
                    request.refuse(unavailable(detail))

    def _pass(self, model: uuid.UUID, requests: list[Request]) -> None:
        started = time.monotonic()
        predictor = self._shelf.get(model)
        encoded = [image for request in requests for image in request.images]
        decode = results.decoder(predictor)
        # A thread for each would cost more than decoding thumbnails.
        spread = len(encoded) > 1 and sum(map(len, encoded)) > THUMBNAIL_BYTES * len(encoded)
        decoded = list(self._pool.map(decode, encoded) if spread else map(decode, encoded))
        ready = time.monotonic()
        maps = any(results.wants_map(request.options) for request in requests)
        squares = [d.square for d in decoded if d.square is not None]
        predictions = iter(predictor.predict_squares(squares, maps=maps))
        found = [None if d.square is None else next(predictions) for d in decoded]
        done = time.monotonic()
        first = 0
        for request in requests:
            last = first + len(request.images)
            timing = {"queue": started - request.arrived, "decode": ready - started, "model": done - ready}
            work = (request, predictor, decoded[first:last], found[first:last], timing)
            if results.cheap(request.options):
                self._answer(*work)
            else:
                self._pool.submit(self._answer, *work)
            first = last

    def _answer(
        self, request: Request, predictor: Any, decoded: list[Decoded], found: list[Any], timing: dict[str, float]
    ) -> None:
        try:
            bodies, parts = results.build_results(predictor, request.images, decoded, found, request.options)
            request.reply(_header(request, bodies, timing), parts)
        except Exception:
            log.exception("the answer to request %s", request.id)
            request.refuse(unavailable("The answer could not be written."))


def overloaded() -> Refused:
    return Refused("overloaded", 429, "Too many predictions are waiting; try again in a second.", retry_after_s=RETRY_S)


def too_late() -> Refused:
    return Refused("deadline_exceeded", 504, "The prediction waited longer than its deadline.")


def unavailable(detail: str) -> Refused:
    return Refused("model_unavailable", 503, detail, retry_after_s=5)


def _by_model(requests: Iterable[Request]) -> list[tuple[uuid.UUID, list[Request]]]:
    groups: dict[uuid.UUID, list[Request]] = {}
    for request in requests:
        groups.setdefault(request.model, []).append(request)
    return list(groups.items())


def _header(request: Request, results: results.Results, timing: dict[str, float]) -> dict[str, Any]:
    seconds = {key: round(value, 6) for key, value in timing.items()}
    return {
        "id": request.id,
        "results": [result.body for result in results],
        "parts": [result.part for result in results],
        "timing_seconds": seconds,
    }
