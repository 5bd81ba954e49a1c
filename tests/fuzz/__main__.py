"""`python -m tests.fuzz`: requests made from the OpenAPI document, sent to a real API; every answer must fit it.

No server errors, no undocumented statuses or bodies, what fits the document accepted and what does not refused.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from tests.servers import die_with_parent, eventually, free_port

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=200, metavar="N", help="random requests an operation")
    parser.add_argument("--smallest", action="store_true", help="only what covers each keyword of the document")
    options = parser.parse_args()
    how = ["--phases", "coverage"] if options.smallest else ["-n", str(options.examples)]

    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        knobs = {"DATA_DIR": folder, "PORT": str(port), "REDIS_URL": "redis://127.0.0.1:1/0", "LOG_LEVEL": "ERROR"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DENLL_")}
        environment |= {f"DENLL_{name}": value for name, value in knobs.items()}
        subprocess.run([sys.executable, "-m", "migrations"], env=environment, check=True)
        api = subprocess.Popen(
            [sys.executable, "-m", "app.main"],
            env=environment,
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )
        try:
            eventually(lambda: api.poll() is None and answers(f"{url}/livez"), seconds=60.0, what="the API")
            command = [
                str(Path(sys.executable).with_name("schemathesis")),
                "--config-file",
                str(HERE / "schemathesis.toml"),
            ]
            command += ["run", f"{url}/openapi.json", "--suppress-health-check", "all", "--no-color", *how]
            return subprocess.run(
                command, env=environment | {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks"}, cwd=folder, check=False
            ).returncode
        finally:
            api.kill()
            api.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
