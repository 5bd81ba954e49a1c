"""Whether the GPUs of this host work: probed before the first claim, and after attempts that they may have ended.

A supervisor whose devices have a fault claims nothing, so that jobs are left to other hosts, and probes them again
after a pause. A probe is a process of its own (`ml.training.device_probe`), because neither this process nor the fork
server may initialise CUDA.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

from app.settings import without_secrets
from worker.supervisor.fork_server import ENVIRONMENT

log = logging.getLogger(__name__)

FIRST_PROBE_S = 120.0  # torch may have to be read from a cold disk
PROBE_S = 20.0  # less than a lease: nobody renews it meanwhile
KILLED_S = 1.0  # for a killed probe to end; one that waits for a broken driver may never do
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0  # between probes of devices with a fault
JOBS_IN_A_ROW = 3  # so many different jobs that end with an error of the device are the device's fault, not theirs


class Finding(NamedTuple):
    """What a probe found."""

    fault: str | None  # why the devices cannot be used
    ids: tuple[str, ...] = ()  # of the GPUs, if all can be used: the same on all hosts, and in each container


Probe = Callable[[Sequence[str], float], Finding]


def run_probe(devices: Sequence[str], timeout_s: float) -> Finding:
    """Have another process compute on the devices.

    Args:
        devices: Their names.
        timeout_s: How long that may take.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "ml.training.device_probe", *devices],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT | without_secrets(os.environ),
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=KILLED_S)
        return Finding(f"{', '.join(devices)} did not answer within {timeout_s:.0f} s")
    try:
        answer = json.loads(output)
    except ValueError:
        return Finding(f"the probe of {', '.join(devices)} ended with status {process.returncode}")
    error = answer["error"]
    return Finding(None if error is None else str(error["detail"]), tuple(answer["ids"]))


class DeviceHealth:
    """The state of the GPUs that a supervisor uses. CPUs never have a fault.

    Args:
        devices: Names of all its devices.
        probe: Checks GPUs; `run_probe` outside of tests.

    Attributes:
        fault: Why the devices cannot be used; None while they can, or before the first probe.
        ids: What identifies the GPUs, once they are known to work.
    """

    def __init__(self, devices: Sequence[str], probe: Probe) -> None:
        self.fault: str | None = None
        self.ids: tuple[str, ...] = ()
        self._gpus = [name for name in devices if name.startswith("cuda")]
        self._probe = probe
        self._is_probed = False
        self._retry_at, self._pause = 0.0, FIRST_PAUSE_S
        self._failed_jobs: set[uuid.UUID] = set()  # that failed with an error of the device, since the last success

    def check(self) -> bool:
        """Whether work can be taken. Probes at the first call, and where a fault may be gone."""
        if self._gpus and (not self._is_probed or (self.fault is not None and time.monotonic() >= self._retry_at)):
            finding = self._probe(self._gpus, PROBE_S if self._is_probed else FIRST_PROBE_S)
            self._set_fault(finding.fault)
            self._is_probed, self.ids = True, finding.ids
        return self.fault is None

    def record_success(self) -> None:
        """Note that an attempt ended without an error of the device."""
        self._failed_jobs.clear()
        self._pause = FIRST_PAUSE_S

    def is_to_blame(self, job_id: uuid.UUID, *, device_failed: bool) -> bool:
        """Whether an attempt failed because of this host's devices, by a probe; they have a fault from then on.

        Args:
            job_id: Of the job.
            device_failed: Whether the attempt ended with an error of its device, and not with any other.
        """
        if not self._gpus:
            return False
        if device_failed:
            self._failed_jobs.add(job_id)
        fault = self._probe(self._gpus, PROBE_S).fault
        if fault is None and len(self._failed_jobs) >= JOBS_IN_A_ROW and device_failed:
            fault = f"{len(self._failed_jobs)} different jobs in a row ended with an error of the device"
        self._set_fault(fault)
        return fault is not None

    def _set_fault(self, fault: str | None) -> None:
        if fault is not None:
            log.error("no work is taken: %s; next probe in %.0f s", fault, self._pause)
            self._retry_at = time.monotonic() + self._pause
            self._pause = min(LONGEST_PAUSE_S, 2 * self._pause)
        elif self.fault is not None:
            log.warning("the devices can be used again, and work is taken")
        self.fault = fault
