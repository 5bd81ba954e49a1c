"""`python -m app.healthcheck`: exit status 0 when this machine's API answers /livez, for containers."""

from __future__ import annotations

import os
import sys
import urllib.request

TIMEOUT_S = 3


def main() -> int:
    host, port = os.environ.get("DENLL_HOST", "127.0.0.1"), os.environ.get("DENLL_PORT", "8000")
    host = "127.0.0.1" if host in {"0.0.0.0", "", "::"} else host  # noqa: S104 - what is bound, not what we bind
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/livez", timeout=TIMEOUT_S) as answer:
            return 0 if answer.status == 200 else 1
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
