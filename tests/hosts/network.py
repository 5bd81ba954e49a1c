"""Two hosts on one machine: network namespaces with names and addresses of their own, joined by a bridge to this one.

A host's cable can be pulled, which is what a dead switch looks like to both ends: no reset, no error, only silence.
Needs root and iproute2. Everything made here carries this process's id, and what a killed run left behind goes first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

NAME = re.compile(r"denll-(\d+)-\w+")


class Missing(Exception):
    """Why this machine cannot simulate several hosts."""


def ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise Missing(f"`ip {' '.join(arguments)}` says: {done.stderr.strip()}")
    return done.stdout


class Host:
    """A namespace with one cable to the bridge."""

    def __init__(self, network: Network, number: int) -> None:
        self.name, self.address = f"host-{number}", f"{network.subnet}.{number + 1}"
        self._space, self._cable = f"denll-{os.getpid()}-{number}", f"dn{os.getpid()}-{number}"
        inside = f"dn{os.getpid()}i{number}"
        ip("netns", "add", self._space)
        ip("link", "add", self._cable, "type", "veth", "peer", "name", inside)
        ip("link", "set", inside, "netns", self._space)
        ip("link", "set", self._cable, "master", network.bridge)
        ip("-n", self._space, "addr", "add", f"{self.address}/24", "dev", inside)
        for device in ("lo", inside):
            ip("-n", self._space, "link", "set", device, "up")
        self.join()

    @property
    def within(self) -> list[str]:
        """What to put before a command so that it runs on this host; it becomes the command, with the same pid."""
        rename = 'hostname "$0" && exec "$@"'
        return ["ip", "netns", "exec", self._space, "unshare", "--uts", "sh", "-c", rename, self.name]

    def cut(self) -> None:
        """Pull the cable."""
        ip("link", "set", self._cable, "down")

    def join(self) -> None:
        """Put it back."""
        ip("link", "set", self._cable, "up")


class Network:
    """The bridge, this machine's address on it, and the hosts."""

    def __init__(self) -> None:
        if os.getuid() != 0:
            raise Missing("only root may make network namespaces")
        for program in ("ip", "unshare", "hostname"):
            if shutil.which(program) is None:
                raise Missing(f"no {program} on PATH (install iproute2)")
        sweep()
        self.subnet = f"198.18.{os.getpid() % 255}"  # of the range for tests of networks (RFC 2544)
        self.address, self.bridge = f"{self.subnet}.1", f"dn{os.getpid()}"
        try:
            ip("link", "add", self.bridge, "type", "bridge")
            ip("addr", "add", f"{self.address}/24", "dev", self.bridge)
            ip("link", "set", self.bridge, "up")
            self.hosts = [Host(self, number) for number in (1, 2)]
        except Missing:
            self.close()
            raise

    def close(self) -> None:
        remove(os.getpid())


def sweep() -> None:
    """Remove the namespaces and links of test processes that were killed."""
    for pid in {int(match[1]) for match in NAME.finditer(ip("netns", "list"))}:
        if not Path(f"/proc/{pid}").exists():
            remove(pid)


def remove(pid: int) -> None:
    for number in (1, 2):
        ip("link", "del", f"dn{pid}-{number}", check=False)  # its other end goes with it
        ip("netns", "del", f"denll-{pid}-{number}", check=False)
    ip("link", "del", f"dn{pid}", check=False)
