"""A child that tells how warm it started: threads of the zygote, seconds of its own import of torch."""

import os
import time
import uuid
from pathlib import Path

import ml.training
from worker import control_channel


def main(work_id: uuid.UUID, fence: int, request_id: str | None, tie: control_channel.ControlChannel) -> int:
    import torch

    started = time.monotonic()
    value = torch.nn.functional.conv2d(torch.ones(8, 3, 32, 32), torch.ones(8, 3, 3, 3)).sum().item()
    threads = len(list(Path(f"/proc/{os.getppid()}/task").iterdir()))
    Path(os.environ["WARM"]).write_text(
        f"{threads} {time.monotonic() - started} {value} {ml.training.trainer.__name__}"
    )
    return 0
