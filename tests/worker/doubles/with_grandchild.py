"""A child that starts a process of its own; neither reads a command, so that only the group can be killed."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from worker import control_channel


def main(work_id: uuid.UUID, fence: int, request_id: str | None, channel: control_channel.ControlChannel) -> int:
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {grandchild.pid}")
    time.sleep(600)
    return 0
