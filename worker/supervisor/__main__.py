"""`python -m worker.supervisor -Q jobs` (or `-Q datasets`): one supervisor."""

from __future__ import annotations

import sys

from worker.supervisor import celery_app

celery_app.main(sys.argv[1:])
