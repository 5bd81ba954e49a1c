"""A child that never says that it advances, and hears nothing."""

import time
import uuid

from worker import control_channel


def main(work_id: uuid.UUID, fence: int, request_id: str | None, tie: control_channel.ControlChannel) -> int:
    time.sleep(600)
    return 0
