"""A child that does as it is told."""

import time
import uuid

from worker import control_channel


def main(work_id: uuid.UUID, fence: int, request_id: str | None, tie: control_channel.ControlChannel) -> int:
    tie.listen()
    while tie.told is None:
        tie.beat()
        time.sleep(0.01)
    return control_channel.DRAINED if tie.told == "drain" else control_channel.STOPPED
