"""A child that never says that it advances, and hears nothing."""

import time
import uuid

from worker import leash


def main(work_id: uuid.UUID, fence: int, request_id: str | None, tie: leash.Leash) -> int:
    time.sleep(600)
    return 0
