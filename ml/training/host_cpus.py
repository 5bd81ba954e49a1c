"""How many CPUs this process may use: by its affinity, and by the quota of its cgroups (v2). Free of torch."""

from __future__ import annotations

import os
from pathlib import Path

from ml.training.host_memory import CGROUPS, PROC, UNLIMITED, read_lines, smallest_in_cgroups


def count(root: Path = CGROUPS, membership: Path = PROC / "self" / "cgroup") -> int:
    """CPUs that this process may use, at least 1; more threads than that would be held up by the kernel.

    Args:
        root: Where cgroups are mounted.
        membership: The /proc/PID/cgroup of the process.
    """
    return max(1, min(len(os.sched_getaffinity(0)), smallest_in_cgroups(root, membership, _quota_of)))


def _quota_of(group: Path) -> int:
    """Whole CPUs in the quota of a group, from its `cpu.max`: microseconds of CPU time and of the period."""
    fields = " ".join(read_lines(group / "cpu.max")).split()
    return max(1, int(fields[0]) // int(fields[1])) if fields and fields[0].isdigit() else UNLIMITED
