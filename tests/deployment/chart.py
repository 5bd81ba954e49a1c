"""The chart as Helm renders it. `python -m tests.deployment.chart` writes what `test_chart.py` compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/denll"
RENDERED = Path(__file__).with_name("chart.yaml")
# Everything that is off by default, and two of what may be several.
ALL: dict[str, Any] = {
    "image": {"prefix": "registry.example.org/denll/denll-", "tag": "1.2.3"},
    "settings": {"DENLL_LOG_LEVEL": "WARNING"},
    "apiSettings": {"DENLL_MAX_QUEUED": "50"},
    "api": {"replicas": 2, "forwardedAllowIps": "10.1.0.0/16", "allowedHosts": ["denll.internal"]},
    "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "denll-tls"},
    "training": {"gpus": 2, "nodeSelector": {"gpu": "yes"}},
    "inference": {"replicas": 2, "gpus": 1},
    "keda": {"enabled": True},
}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The resources that Helm makes of these values, for a release `denll` in a namespace `denll`."""
    import helm_python

    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="denll", namespace="denll")
    texts = [files[name] for name in sorted(files) if name.endswith(".yaml")]
    return [resource for text in texts for resource in yaml.safe_load_all(text) if resource]


if __name__ == "__main__":
    RENDERED.write_text(yaml.safe_dump_all(render(ALL), default_flow_style=None, width=160))
