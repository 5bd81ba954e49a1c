"""Heartbeats: each process keeps one row with its kind, its device, its fault and when it was last alive.

The API's readiness and the dispatcher read these rows.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid

from app import worker_registry
from app.db.session import Engine, transaction
from app.errors import DatabaseUnavailable
from app.worker_registry import HostFacts

log = logging.getLogger(__name__)


def unique_name() -> str:
    """A name for this process that no other process has, now or later."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class Heartbeat:
    """This process's row in the worker registry. While the database is unavailable a warning is logged.

    Args:
        engine: The database.
        kind: What kind of process it is.
        device: The first device it computes on, None where it computes nothing.
        name: A unique name, the row's id.
        devices: How many devices it offers to one job.
        host: Facts of its host; None where nothing depends on them.
    """

    def __init__(
        self,
        engine: Engine,
        kind: worker_registry.Kind,
        device: str | None,
        name: str,
        *,
        devices: int = 0,
        host: HostFacts | None = None,
    ) -> None:
        self.name = name
        self._engine = engine
        self._kind = kind
        self._device, self._devices, self._host = device, devices, host
        self._is_written = True

    def beat(self, *, draining: bool = False, fault: str | None = None) -> bool:
        """Write that this process is alive; False when the database is unavailable.

        Args:
            draining: Whether it is about to end.
            fault: Why it can do no work; None if it can.
        """
        try:
            with transaction(self._engine) as session:
                worker_registry.record_heartbeat(
                    session,
                    self.name,
                    self._kind,
                    self._device,
                    devices=self._devices,
                    draining=draining,
                    fault=fault,
                    host=self._host,
                )
        except DatabaseUnavailable:
            if self._is_written:
                log.warning("heartbeat not written: the database is unavailable")
            self._is_written = False
        else:
            self._is_written = True
        return self._is_written

    def end(self) -> None:
        """Delete the row; while the database is unavailable, that is left to the dispatcher."""
        try:
            with transaction(self._engine) as session:
                worker_registry.remove(session, self.name)
        except DatabaseUnavailable:
            log.warning("heartbeat row not removed: the database is unavailable")
