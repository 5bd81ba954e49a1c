"""Dynamic batching: requests that arrive during a forward pass wait, and the next pass takes all of them.

There is no batching timer: an idle model starts at once, a busy one with a full batch. The queue is bounded, and a
request that does not fit is refused at once. A pool decodes images and encodes replies.

On a CPU up to `MOST_BATCHES` batches are computed at the same time, each by a model thread with a share of the cores: a
pass on all cores would wait at every layer for the slowest core, and on a busy machine one is always slow. A request
that comes alone gets all cores. On a GPU there is one model thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from app.errors import StorageUnavailable, sentence
from app.settings import Settings
from ml.errors import DeviceUnavailable, DeviceUnsupported, Failure, OutOfMemory
from ml.serving.predictor import Prediction, Predictor
from worker.inference import results
from worker.inference.model_cache import ModelCache
from worker.inference.results import DecodedImage

log = logging.getLogger(__name__)

QUEUE_BYTES = 256 * 1024 * 1024  # of encoded images in the queue, besides the limit on their number
THUMBNAIL_BYTES = 8 * 1024  # a JPEG of this size is decoded in a tenth of a millisecond
RETRY_S = 1
MOST_BATCHES = 4  # side by side; more of them would be small
Reply = Callable[[dict[str, Any], Sequence[bytes]], object]  # called with the header and the parts of a frame


class Refused(Exception):
    """A whole request is refused.

    Args:
        code: One of `results.TITLES`.
        status: The HTTP status of the response.
        detail: A sentence.
        retry_after_s: After how many seconds the client may try again.
    """

    def __init__(self, code: str, status: int, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.error = {"code": code, "status": status, "title": results.TITLES[code], "detail": detail}
        if retry_after_s is not None:
            self.error["retry_after_s"] = retry_after_s


@dataclass
class Request:
    """Encoded images of one client; all results are one reply.

    Args:
        id: The client's own, repeated in the reply.
        model: The published model.
        images: At least one, encoded (JPEG, PNG, ...).
        options: `top_k`, `threshold`, `masks`, `mask_threshold`, `render`, as in the API.
        deadline_s: After this time in the queue nobody waits for the results, and they are not computed.
        reply: Called exactly once, from any thread.
    """

    id: str
    model: uuid.UUID
    images: list[bytes]
    options: dict[str, Any]
    deadline_s: float
    reply: Reply
    arrived_at: float = field(default_factory=time.monotonic)

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() - self.arrived_at > self.deadline_s

    def refuse(self, refused: Refused) -> None:
        """Reply with an error."""
        self.reply({"id": self.id, "error": refused.error}, ())


class Batch(NamedTuple):
    """What a model thread does next: its requests, or none to preload models; and its number of CPU threads."""

    requests: list[Request]
    threads: int


class Batcher:
    """The queue, and the threads that empty it.

    Args:
        settings: Limits of the queue and of a batch.
        models: Where models come from; says on what they compute, and how many CPU threads there are.
    """

    def __init__(self, settings: Settings, models: ModelCache) -> None:
        self._settings = settings
        self._models = models
        self._queue: deque[Request] = deque()
        self._queued_images = self._queued_bytes = 0
        self._changed = threading.Condition()  # guards the queue, the two flags and the cores
        self._ended = self._should_preload = False
        self._cores: dict[int, int] = {}  # how many each model thread that computes has, by its identity
        self._pool = ThreadPoolExecutor(max(2, settings.threads or 4), thread_name_prefix="decode")
        count = min(models.threads, MOST_BATCHES) if models.device == "cpu" else 1
        self._threads = [threading.Thread(target=self._run, name=f"model-{n}", daemon=True) for n in range(count)]

    @property
    def fault(self) -> str | None:
        """Why this process can predict nothing; None while it can."""
        return self._models.fault

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Refuse what is queued, and finish what is being computed."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._pool.shutdown()

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests, waking a model thread once for all of them; what does not fit is refused at once."""
        with self._changed:
            for request in requests:
                size = sum(map(len, request.images))
                is_full = self._queued_images + len(request.images) > self._settings.predict_queue
                if is_full or self._queued_bytes + size > QUEUE_BYTES:
                    request.refuse(overloaded())
                    continue
                self._queue.append(request)
                self._queued_images += len(request.images)
                self._queued_bytes += size
            self._changed.notify()

    def preload(self) -> None:
        """Have a model thread load the newest model when no request is queued."""
        with self._changed:
            self._should_preload = True
            self._changed.notify()

    def _run(self) -> None:
        """A model thread: one batch after another, until the end."""
        while (batch := self._next_batch()) is not None:
            torch.set_num_threads(batch.threads)  # of this thread alone
            if not batch.requests:
                self._update_models()
            for model, requests in _by_model(self._refuse_late(batch.requests)):
                self._predict(model, requests)
            self._return_cores()

    def _update_models(self) -> None:
        try:
            self._models.evict_deleted()
            self._models.load_newest()
        except (OSError, StorageUnavailable) as error:  # a request for a model will report it
            log.warning("the models cannot be read: %s", error)

    def _next_batch(self) -> Batch | None:
        """This model thread's part of the queue; no requests when models should be preloaded; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ended or self._should_preload)

            # At the end every queued request gets its one reply.
            if self._ended:
                for request in self._queue:
                    request.refuse(unavailable("The inference process is ending."))
                self._queue.clear()
                return None

            # Take whole requests, as many images as leave the same to every thread that waits; the first request is
            # taken always, however many images it has.
            waiting = len(self._threads) - len(self._cores)
            most = min(math.ceil(self._queued_images / waiting), self._settings.predict_batch)
            batch: list[Request] = []
            count = 0
            while self._queue and (not batch or count + len(self._queue[0].images) <= most):
                request = self._queue.popleft()
                batch.append(request)
                count += len(request.images)
                self._queued_bytes -= sum(map(len, request.images))
            self._queued_images -= count
            if not batch:
                self._should_preload = False
            if self._queue:
                self._changed.notify()

            # Take the same share of the cores that are free, and at least an equal one of all.
            free = self._models.threads - sum(self._cores.values())
            parts = min(waiting, 1 + len(self._queue))
            threads = max(free // parts, self._models.threads // len(self._threads))
            self._cores[threading.get_ident()] = threads
            return Batch(batch, threads)

    def _return_cores(self) -> None:
        """Free the cores of this model thread; replying needs none of them."""
        with self._changed:
            self._cores.pop(threading.get_ident(), None)

    def _refuse_late(self, batch: Iterable[Request]) -> Iterable[Request]:
        for request in batch:
            if request.is_late:
                request.refuse(too_late())
            else:
                yield request

    def _predict(self, model: uuid.UUID, requests: list[Request]) -> None:
        """One forward pass for all requests; when it fails, one for each, so that only the faulty request fails."""
        try:
            self._predict_batch(model, requests)
        except Exception as error:
            detail = "The prediction failed."
            if isinstance(error, Failure):
                detail = sentence(error.detail)
                log.warning("model %s: %s", model, error, exc_info=error.__cause__)
                if isinstance(error, DeviceUnavailable | DeviceUnsupported):
                    self._models.fault = error.detail
            else:
                log.exception("model %s, a batch of %d requests", model, len(requests))
            is_models_fault = isinstance(error, Failure) and not isinstance(error, OutOfMemory)
            if len(requests) > 1 and not is_models_fault:
                for request in requests:
                    self._predict(model, [request])
            else:
                for request in requests:
                    request.refuse(unavailable(detail))

    def _predict_batch(self, model: uuid.UUID, requests: list[Request]) -> None:
        # Decode.
        started = time.monotonic()
        predictor = self._models.get(model)
        encoded = [image for request in requests for image in request.images]
        decode = results.build_decoder(predictor)
        # For thumbnails, handing each to a thread would cost more than decoding it.
        in_pool = len(encoded) > 1 and sum(map(len, encoded)) > THUMBNAIL_BYTES * len(encoded)
        decoded = list(self._pool.map(decode, encoded) if in_pool else map(decode, encoded))
        decoded_at = time.monotonic()

        # Predict all images that could be decoded.
        maps = any(results.wants_map(request.options) for request in requests)
        squares = [d.square for d in decoded if d.square is not None]
        predictions = iter(predictor.predict_squares(squares, maps=maps))
        by_image = [None if d.square is None else next(predictions) for d in decoded]
        predicted_at = time.monotonic()
        self._return_cores()  # before clients know, whose next requests come at once

        # Reply to each request with its own images; what takes long to write is left to the pool.
        first = 0
        for request in requests:
            last = first + len(request.images)
            timing = {
                "queue": started - request.arrived_at,
                "decode": decoded_at - started,
                "model": predicted_at - decoded_at,
            }
            arguments = (request, predictor, decoded[first:last], by_image[first:last], timing)
            if results.is_cheap(request.options):
                self._reply(*arguments)
            else:
                self._pool.submit(self._reply, *arguments)
            first = last

    def _reply(
        self,
        request: Request,
        predictor: Predictor,
        decoded: list[DecodedImage],
        predictions: list[Prediction | None],
        timing: dict[str, float],
    ) -> None:
        try:
            bodies, parts = results.build_results(predictor, request.images, decoded, predictions, request.options)
            request.reply(_header(request, bodies, timing), parts)
        except Exception:
            log.exception("the results of request %s", request.id)
            request.refuse(unavailable("The results could not be written."))


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


def _header(request: Request, image_results: results.Results, timing: dict[str, float]) -> dict[str, Any]:
    seconds = {key: round(value, 6) for key, value in timing.items()}
    return {
        "id": request.id,
        "results": [result.body for result in image_results],
        "parts": [result.part for result in image_results],
        "timing_seconds": seconds,
    }
