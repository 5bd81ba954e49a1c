"""A child that always ends by a signal: what an out-of-memory killer leaves."""

import os
import signal
import uuid

from worker import control_channel


def main(work_id: uuid.UUID, fence: int, request_id: str | None, tie: control_channel.ControlChannel) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0
