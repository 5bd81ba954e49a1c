"""`python -m worker.inference`: one inference process."""

from __future__ import annotations

from worker.inference import server

server.main()
