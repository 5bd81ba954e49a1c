"""Leases of GPUs: one supervisor each, until it ends or is not heard of any more."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import update

from app import worker_registry
from app.db import session as db
from app.db.clock import now
from app.db.tables import DeviceLease
from tests.app.conftest import BOTH, Client


@BOTH
def test_F30_a_gpu_is_leased_to_one_supervisor(client: Client) -> None:
    lease = leases(client)

    assert lease("a", "GPU-1", "GPU-2") is None
    assert lease("b", "GPU-3", "GPU-2") == "a"
    assert lease("c", "GPU-3") is None  # b holds none of what it asked for
    assert lease("a", "GPU-1", "GPU-2") is None


@BOTH
def test_F30_a_lease_ends_with_its_supervisor(client: Client) -> None:
    lease = leases(client)
    lease("a", "GPU-1"), lease("b", "GPU-2")
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        worker_registry.release_devices(session, "a")
        session.execute(update(DeviceLease).where(DeviceLease.device == "GPU-2").values(expires_at=now(-1.0)))

    assert lease("c", "GPU-1", "GPU-2") is None
    assert lease("b", "GPU-2") == "c"


def leases(client: Client) -> Callable[..., str | None]:
    def lease(owner: str, *devices: str) -> str | None:
        with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
            return worker_registry.lease_devices(session, owner, devices)

    return lease
