"""A child that does as it is told."""

import time
import uuid

from worker import leash


def main(work_id: uuid.UUID, fence: int, request_id: str | None, tie: leash.Leash) -> int:
    tie.listen()
    while tie.told is None:
        tie.beat()
        time.sleep(0.01)
    return leash.DRAINED if tie.told == "drain" else leash.STOPPED
