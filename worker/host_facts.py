"""What the cost of a training on this host depends on: its memory, CPUs and their instructions. Free of torch.

The dispatcher's image has no `ml.training`, so this is a module apart from `worker.heartbeat`.
"""

from __future__ import annotations

from pathlib import Path

from app.settings import Settings
from app.worker_registry import HostFacts
from ml.training import host_cpus, host_memory


def read(settings: Settings, cpuinfo: Path = Path("/proc/cpuinfo")) -> HostFacts:
    """The facts of this host.

    Args:
        settings: For the number of threads.
        cpuinfo: The kernel's list of processors and their instructions.
    """
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return HostFacts(
        memory_bytes=host_memory.total_bytes(),
        cpus=settings.threads or host_cpus.count(),
        bf16="amx" if "amx_bf16" in flags else "avx512" if "avx512_bf16" in flags else None,
    )
