"""How much memory the host has and has left, within the limits of a process and of its cgroups (v2). Free of torch."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

UNLIMITED = 1 << 62
CGROUPS, PROC = Path("/sys/fs/cgroup"), Path("/proc")
CGROUP_FILE_CACHE = ("inactive_file", "active_file")  # counted as used, and given back when somebody needs it


def free_bytes() -> int:
    """Bytes that this process may still allocate."""
    left_in_groups = cgroup_free_bytes(CGROUPS, PROC / "self" / "cgroup")
    return min(available_bytes(PROC / "meminfo"), left_in_groups, process_free_bytes(PROC / "self" / "status"))


def total_bytes() -> int:
    """Bytes that this process could use if it were alone: of the host, or of the smallest limit of its cgroups."""
    return min(installed_bytes(PROC / "meminfo"), cgroup_limit_bytes(CGROUPS, PROC / "self" / "cgroup"))


def available_bytes(meminfo: Path) -> int:
    """MemAvailable of a /proc/meminfo, in bytes; UNLIMITED if there is none."""
    return _read(meminfo, "MemAvailable:")


def installed_bytes(meminfo: Path) -> int:
    """MemTotal of a /proc/meminfo, in bytes; UNLIMITED if there is none."""
    return _read(meminfo, "MemTotal:")


def process_free_bytes(status: Path) -> int:
    """Bytes left below this process's own limit of data (RLIMIT_DATA), by its /proc/PID/status; UNLIMITED without one.

    A private mapping of a file counts as data.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return UNLIMITED if limit == resource.RLIM_INFINITY else max(0, limit - _read(status, "VmData:"))


def cgroup_free_bytes(root: Path, membership: Path) -> int:
    """The smallest number of bytes left below the limits of a process's cgroup (v2) and of its ancestors.

    Args:
        root: Where cgroups are mounted.
        membership: The /proc/PID/cgroup of the process.
    """
    return smallest_in_cgroups(root, membership, _left_in)


def cgroup_limit_bytes(root: Path, membership: Path) -> int:
    """The smallest limit of a process's cgroup (v2) and of its ancestors; arguments as for `cgroup_free_bytes`."""
    return smallest_in_cgroups(root, membership, _limit_of)


def smallest_in_cgroups(root: Path, membership: Path, limit_of: Callable[[Path], int]) -> int:
    """The smallest `limit_of` the folders of a process's cgroup (v2) and of its ancestors; UNLIMITED without any.

    Args:
        root: Where cgroups are mounted.
        membership: The /proc/PID/cgroup of the process.
        limit_of: The limit of one group, UNLIMITED where it has none.
    """
    names = [line.removeprefix("0::") for line in read_lines(membership) if line.startswith("0::")]
    smallest = UNLIMITED
    for name in names:
        parts = [part for part in name.strip("/").split("/") if part]
        for depth in range(len(parts) + 1):
            smallest = min(smallest, limit_of(root.joinpath(*parts[:depth])))
    return smallest


def _limit_of(group: Path) -> int:
    limit = read_lines(group / "memory.max")
    return int(limit[0]) if limit and limit[0].isdigit() else UNLIMITED  # no such group, or "max"


def _left_in(group: Path) -> int:
    limit, used = _limit_of(group), read_lines(group / "memory.current")
    if limit == UNLIMITED or not used:
        return UNLIMITED
    facts = dict(line.split(maxsplit=1) for line in read_lines(group / "memory.stat"))
    cached = sum(int(facts.get(name, 0)) for name in CGROUP_FILE_CACHE)
    return max(0, limit - int(used[0]) + cached)


def _read(meminfo: Path, name: str) -> int:
    return next((int(line.split()[1]) * 1024 for line in read_lines(meminfo) if line.startswith(name)), UNLIMITED)


def read_lines(path: Path) -> list[str]:
    """The lines of a file of the kernel; none where there is no such file."""
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
