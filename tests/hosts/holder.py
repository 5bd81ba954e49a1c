"""`python -m tests.hosts.holder`: claims the next data set, renews its lease, and never commits the renewal."""

from __future__ import annotations

import time

from app.datasets import ingest_queue
from app.db.session import connect, transaction, wait_until_reachable
from app.settings import current


def main() -> None:
    settings = current()
    engine = connect(settings)
    wait_until_reachable(engine, 60.0)
    with transaction(engine) as session:
        claim = ingest_queue.claim(session, "holder", settings.lease_s)
    assert claim is not None
    with transaction(engine) as session:
        ingest_queue.renew_lease(session, claim.id, claim.fence, settings.lease_s)
        print("held", flush=True)
        time.sleep(600.0)


if __name__ == "__main__":
    main()
