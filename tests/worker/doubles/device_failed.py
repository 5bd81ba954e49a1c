"""A child that meets an error of its device."""

import uuid

from worker import control_channel


def main(work_id: uuid.UUID, fence: int, request_id: str | None, channel: control_channel.ControlChannel) -> int:
    return control_channel.DEVICE_FAILED
