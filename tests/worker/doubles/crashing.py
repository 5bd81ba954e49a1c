"""A child that is always killed by a signal, as by the kernel's out-of-memory killer."""

import os
import signal
import uuid

from worker import control_channel


def main(work_id: uuid.UUID, fence: int, request_id: str | None, channel: control_channel.ControlChannel) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0
