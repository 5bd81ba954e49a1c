"""A child that writes what its fork server left it: threads of the server, seconds of a first convolution."""

import os
import time
import uuid
from pathlib import Path

import ml.training
from worker import control_channel


def main(work_id: uuid.UUID, fence: int, request_id: str | None, channel: control_channel.ControlChannel) -> int:
    import torch

    started = time.monotonic()
    value = torch.nn.functional.conv2d(torch.ones(8, 3, 32, 32), torch.ones(8, 3, 3, 3)).sum().item()
    threads = len(list(Path(f"/proc/{os.getppid()}/task").iterdir()))
    Path(os.environ["PRELOADED"]).write_text(
        f"{threads} {time.monotonic() - started} {value} {ml.training.trainer.__name__}"  # type: ignore[attr-defined]
    )
    return 0
