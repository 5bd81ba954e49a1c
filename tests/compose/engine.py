"""A private podman behind its Docker-compatible socket, with everything it keeps in one folder.

It stands in for the Docker engine, and is not one: health checks need a loop that runs them, there is no GPU, and its
containers are restarted by their monitor. What is tested with it, it does not know.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.servers import die_with_parent, eventually

NEEDED = ("buildah", "podman", "runc", "debootstrap", "catatonit", "iptables")
BEAT_S = 1.0  # between two looks for containers whose health is due
MOST_PROCESSES = 8192  # of one user, which no container may raise
RECHECK_S = 20.0  # of a healthy container


class Engine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "podman.sock"
        self.environment = dict(os.environ) | self._configured()
        self._ended = threading.Event()

    def _configured(self) -> dict[str, str]:
        """Configuration files that keep images, containers, volumes, networks and caches below our folder."""
        root = self.folder
        for name in ("storage", "run", "networks", "state", "temporary"):
            (root / name).mkdir(parents=True, exist_ok=True)
        files = {
            "storage.conf": f'[storage]\ndriver = "overlay"\ngraphroot = "{root}/storage"\nrunroot = "{root}/run"\n',
            "registries.conf": 'unqualified-search-registries = ["docker.io"]\n',
            "containers.conf": (
                f'[containers]\ndefault_ulimits = ["nofile=8192:8192", "nproc={MOST_PROCESSES}:{MOST_PROCESSES}"]\n'
                f'[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
                f'tmp_dir = "{root}/state"\nvolume_path = "{root}/volumes"\n'
                f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{root}/networks"\n'
            ),
        }
        for name, text in files.items():
            (root / name).write_text(text)
        return {
            "CONTAINERS_STORAGE_CONF": str(root / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(root / "registries.conf"),
            "CONTAINERS_CONF": str(root / "containers.conf"),
            "TMPDIR": str(root / "temporary"),
            "DOCKER_HOST": f"unix://{self.socket}",
        }

    def run(self, *command: str | Path, quiet: bool = True, timeout: float = 900.0, check: bool = True) -> str:
        """Standard output of a command that uses this engine; its errors are shown when it fails."""
        errors = subprocess.PIPE if quiet else None
        done = subprocess.run(
            [str(part) for part in command],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))[:200]}: {(done.stderr or '')[-3000:]}")
        return done.stdout.strip()

    def podman(self, *arguments: str | Path, check: bool = True) -> str:
        return self.run("podman", *arguments, check=check)

    def inspect(self, container: str) -> dict[str, Any]:
        containers: list[dict[str, Any]] = json.loads(self.podman("inspect", "--type=container", container))
        return containers[0]

    def execute(self, container: str, *command: str) -> subprocess.CompletedProcess[str]:
        """A command inside a running container; its status is the caller's to judge."""
        return subprocess.run(
            ["podman", "exec", container, *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """The socket that Compose talks to, and the loop that runs health checks."""
        log = (self.folder / "podman.log").open("ab")
        service = subprocess.Popen(
            ["podman", "system", "service", "--time=0", f"unix://{self.socket}"],
            env=self.environment,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no thread of ours runs yet
        )
        nurse = threading.Thread(target=self._check_health, name="health", daemon=True)
        try:
            eventually(self.socket.exists, what="podman's socket")
            nurse.start()
            yield
        finally:
            self._ended.set()
            service.terminate()
            service.wait(20)
            log.close()

    def _check_health(self) -> None:
        due: dict[str, float] = {}
        while not self._ended.wait(BEAT_S):
            for container in self._running():
                if time.monotonic() >= due.get(container, 0.0):
                    healthy = self.run("podman", "healthcheck", "run", container, check=False, timeout=60) == ""
                    due[container] = time.monotonic() + (RECHECK_S if healthy else BEAT_S)

    def _running(self) -> Sequence[str]:
        """Containers that have a health check; one that has none has nothing to be asked."""
        listed = json.loads(self.podman("ps", "--format=json", check=False) or "[]")
        return [c["Id"] for c in listed if "healthy" in c.get("Status", "") or "starting" in c.get("Status", "")]

    def clean(self) -> None:
        """Containers, volumes, networks and mounts: all but images and caches."""
        self.podman("rm", "--all", "--force", "--time=0", "--volumes", check=False)
        self.podman("volume", "prune", "--force", check=False)
        self.podman("network", "prune", "--force", check=False)
        self.run("buildah", "rm", "--all", check=False)
        for mounted in sorted(_mounts_below(self.folder), reverse=True):
            subprocess.run(["umount", "--lazy", mounted], check=False)

    def remove_all(self) -> None:
        self.clean()
        assert not _mounts_below(self.folder), "something is still mounted below our folder; not removing it"
        shutil.rmtree(self.folder)


def _mounts_below(folder: Path) -> list[str]:
    points = (line.split()[1].replace("\\040", " ") for line in Path("/proc/self/mounts").read_text().splitlines())
    return [point for point in points if point.startswith(f"{folder}/")]
