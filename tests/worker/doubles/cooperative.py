"""A child that advances until it receives a command, and obeys it."""

import time
import uuid

from worker import control_channel


def main(work_id: uuid.UUID, fence: int, request_id: str | None, channel: control_channel.ControlChannel) -> int:
    channel.listen()
    while channel.command is None:
        channel.beat()
        time.sleep(0.01)
    return control_channel.DRAINED if channel.command == "drain" else control_channel.STOPPED
