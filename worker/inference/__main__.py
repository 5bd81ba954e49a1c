"""`python -m worker.inference`: one inference process."""

from __future__ import annotations

import gc

gc.disable()  # imports leave little garbage, and looking for it takes a quarter of their time

from worker.inference import server  # noqa: E402

gc.enable()
server.main()
