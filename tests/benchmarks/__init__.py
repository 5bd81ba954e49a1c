"""Benchmarks. What they measure in their own process runs under the same policy as the service's processes."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin starve whoever shares the cores
