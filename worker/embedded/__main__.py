"""`python -m worker.embedded`: the whole service on one machine."""

from __future__ import annotations

from worker.embedded import launcher

launcher.main()
