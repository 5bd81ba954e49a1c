"""An attempt at a job where the disk is full until a file appears: `python -m ... FILE JOB FENCE`."""

from __future__ import annotations

import errno
import socket
import sys
import uuid
from pathlib import Path

from ml.training import checkpoint
from worker.children import checkpointing, job
from worker.control_channel import ControlChannel

PAUSE_S = 0.5  # between tries
write = checkpoint.write


def write_if_there_is_space(folder: Path, state: checkpoint.State) -> Path:
    if not Path(sys.argv[1]).exists():
        raise OSError(errno.ENOSPC, "No space left on device")
    return write(folder, state)


if __name__ == "__main__":
    checkpoint.write = write_if_there_is_space
    checkpointing.FIRST_PAUSE_S = checkpointing.LONGEST_PAUSE_S = PAUSE_S
    ours, theirs = socket.socketpair()
    sys.exit(job.main(uuid.UUID(sys.argv[2]), int(sys.argv[3]), None, ControlChannel(theirs)))
