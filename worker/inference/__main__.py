"""`python -m worker.inference`: one inference process."""

from __future__ import annotations

import gc
import os
import sys

gc.disable()  # imports leave little garbage, and looking for it takes a quarter of their time

from worker.inference import server  # noqa: E402

gc.enable()
server.main()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # everything is closed, and unloading torch takes a second
