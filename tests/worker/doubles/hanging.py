"""A child that never reports that it advances, and reads no command."""

import time
import uuid

from worker import control_channel


def main(work_id: uuid.UUID, fence: int, request_id: str | None, channel: control_channel.ControlChannel) -> int:
    time.sleep(600)
    return 0
