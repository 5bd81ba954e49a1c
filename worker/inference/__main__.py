"""`python -m worker.inference`: one inference process."""

from __future__ import annotations

import gc
import os
import sys

gc.disable()  # imports leave little garbage, and looking for it takes a quarter of their time
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a fork copies one thread, and no thread pool survives it

from worker.inference import server  # noqa: E402

server.main()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # everything is closed, and unloading torch takes a second
