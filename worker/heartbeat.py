"""Heartbeat rows: which processes are there, of what kind, on which device. Readiness is answered from them.

The device is found without torch, because supervisors have none.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from pathlib import Path

from app import worker_registry
from app.db.session import Engine, transaction
from app.errors import DatabaseUnavailable
from app.settings import Settings

log = logging.getLogger(__name__)


def name() -> str:
    """An owner's name that no other process, now or later, has."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def device(settings: Settings) -> str:
    """This process's first device, `cpu`, `cuda` or `cuda:1`; for `auto`, what torch will find, asked of the driver."""
    first = settings.device_names[0]
    if first != "auto":
        return first
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "cuda" if not hidden and any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"


class Presence:
    """This process's row. Losing the database costs a warning, never the process."""

    def __init__(
        self, engine: Engine, kind: worker_registry.Kind, device: str | None, name: str, *, devices: int = 0
    ) -> None:
        """`devices` is how many are offered to jobs."""
        self.name = name
        self._engine = engine
        self._kind = kind
        self._device, self._devices = device, devices
        self._told = True

    def tell(self, *, draining: bool = False) -> bool:
        """Say "I am here"; False when the database is away."""
        try:
            with transaction(self._engine) as session:
                worker_registry.record_heartbeat(
                    session, self.name, self._kind, self._device, devices=self._devices, draining=draining
                )
        except DatabaseUnavailable:
            if self._told:
                log.warning("heartbeat not written: the database is away")
            self._told = False
        else:
            self._told = True
        return self._told

    def end(self) -> None:
        """Take the row away, if the database lets us; the dispatcher removes it otherwise."""
        try:
            with transaction(self._engine) as session:
                worker_registry.remove(session, self.name)
        except DatabaseUnavailable:
            log.warning("heartbeat row not removed: the database is away")
