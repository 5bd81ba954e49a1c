"""The profiles: what each adds, and that its files fit to each other, to Compose and to what the service publishes."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import promql_parser
import pytest
import yaml

from tests import published_metrics
from tests.deployment.test_containers import GPU, SECRETS, resolved
from tests.servers import die_with_parent, eventually, free_port
from tests.worker.harness import opened

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "docs/prometheus-rules.yml").read_text())
SCRAPING = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())
DASHBOARD = json.loads((ROOT / "deploy/monitoring/dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
ALERTS = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
PROFILES = {
    "tls": {"caddy"},
    "monitoring": {"prometheus", "grafana"},
    "monitoring-gpu": {"prometheus", "grafana", "dcgm-exporter"},
}
FOREIGN = {"up", "ALERTS", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_GPU_TEMP"}


def stack(profiles: str) -> dict[str, Any]:
    return resolved(GPU, COMPOSE_PROFILES=profiles)


@pytest.fixture(scope="module")
def added() -> dict[str, dict[str, Any]]:
    """The services that profiles add."""
    services = stack("*")["services"]
    return {name: services[name] for name in services.keys() - resolved(GPU)["services"].keys()}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_adds_its_services_and_no_other(profile: str) -> None:
    assert stack(profile)["services"].keys() - resolved(GPU)["services"].keys() == PROFILES[profile]


def test_what_profiles_add_is_hardened_and_holds_no_secret_of_the_service(added: dict[str, dict[str, Any]]) -> None:
    for name, service in added.items():
        assert service["init"] is True, name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else []), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0, name
        assert int(service["pids_limit"]) > 0, name
        assert service["cpus"] > 0, name
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), name
        assert {mount["type"] for mount in service.get("volumes", [])} <= {"volume"}, name
        assert not [secret for secret in SECRETS.values() if secret in json.dumps(service)], name


def test_they_reach_the_api_alone_and_only_the_proxy_is_published_to_others(added: dict[str, dict[str, Any]]) -> None:
    networks = {name: set(service["networks"]) for name, service in added.items()}
    published = {name: {port.get("host_ip") for port in service.get("ports", [])} for name, service in added.items()}

    assert networks == {
        "caddy": {"front", "outside"},
        "prometheus": {"front"},
        "grafana": {"front", "outside"},
        "dcgm-exporter": {"front"},
    }
    assert published == {"caddy": {None}, "grafana": {"127.0.0.1"}, "prometheus": set(), "dcgm-exporter": set()}
    for name, service in resolved(GPU)["services"].items():
        assert ("front" in service["networks"]) == (name == "api"), name


def test_the_api_believes_addresses_of_clients_from_the_network_of_the_proxy_alone() -> None:
    for chosen in ({}, {"FRONT_SUBNET": "10.9.8.0/29"}):
        configuration = resolved(GPU, **chosen)
        [network] = configuration["networks"]["front"]["ipam"]["config"]

        assert configuration["networks"]["front"]["internal"] is True
        assert configuration["services"]["api"]["environment"]["FORWARDED_ALLOW_IPS"] == network["subnet"]
        assert ipaddress.ip_network(network["subnet"]).num_addresses >= 8


def test_the_api_answers_to_the_names_by_which_proxy_and_prometheus_reach_it() -> None:
    environment = resolved(GPU, TLS_HOST="denll.example.org")["services"]["api"]["environment"]
    [api] = [job for job in SCRAPING["scrape_configs"] if job["job_name"] == "denll"]
    targets = [target.partition(":")[0] for entry in api["static_configs"] for target in entry["targets"]]

    assert {*targets, "denll.example.org"} <= set(environment["DENLL_ALLOWED_HOSTS"].split(","))


def test_every_file_is_where_its_program_looks_for_it(added: dict[str, dict[str, Any]]) -> None:
    configs = stack("*")["configs"]
    mounted = {
        name: {mount["target"]: Path(configs[mount["source"]]["file"]) for mount in service.get("configs", [])}
        for name, service in added.items()
    }

    for files in mounted.values():
        assert all(file.is_file() for file in files.values())
    assert set(SCRAPING["rule_files"]) <= mounted["prometheus"].keys()
    script = added["prometheus"]["command"][-1]
    assert re.findall(r"--config.file=(\S+)", script)[0] in mounted["prometheus"]
    assert SCRAPING["scrape_configs"][0]["authorization"]["credentials_file"] in script
    [provider] = yaml.safe_load((ROOT / "deploy/monitoring/grafana-dashboards.yml").read_text())["providers"]
    home = Path(added["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home) in mounted["grafana"]
    assert str(home.parent) == provider["options"]["path"]
    [source] = yaml.safe_load((ROOT / "deploy/monitoring/grafana-datasource.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.parametrize("expression", ALERTS + QUERIES)
def test_every_expression_of_rules_and_dashboard_is_promql(expression: str) -> None:
    assert list(metric_names(promql_parser.parse(expression)))


def test_the_dashboard_shows_metrics_that_exist(tmp_path: Path) -> None:
    text = "\n".join(QUERIES)
    names = {name for query in QUERIES for name in metric_names(promql_parser.parse(query))}

    published_metrics.check(published_metrics.published(tmp_path), text)
    assert names == {name for name, _ in published_metrics.used(text)} | FOREIGN


def metric_names(expression: Any) -> Iterator[str]:
    """The metrics in a parsed expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression.name or ""
    for part in ("expr", "lhs", "rhs", "vector_selector"):
        if (inner := getattr(expression, part, None)) is not None:
            yield from metric_names(inner)
    for argument in getattr(expression, "args", None) or ():
        yield from metric_names(argument)


def test_every_panel_has_a_place_of_its_own_and_a_title() -> None:
    panels = DASHBOARD["panels"]
    cells = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)


def test_the_proxy_serves_the_api_over_tls(tmp_path: Path) -> None:
    """Caddy itself with our file; only its ports differ, which other tests may use."""
    caddy = shutil.which("caddy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert caddy, "caddy is part of requirements/dev.txt"
    api, https, http = free_port(), free_port(), free_port()
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    upstream = {"TLS_UPSTREAM": f"127.0.0.1:{api}", "TLS_DIRECTIVE": "tls internal"}
    adapt = [caddy, "adapt", "--config", str(ROOT / "deploy/Caddyfile"), "--adapter", "caddyfile"]
    adapted = subprocess.run(adapt, env=home | upstream, capture_output=True, check=True).stdout
    configuration = json.loads(adapted)
    assert configuration["admin"] == {"disabled": True, "config": {"persist": False}}
    servers = configuration["apps"]["http"]
    servers |= {"http_port": http, "https_port": https}
    servers["servers"]["srv0"]["listen"] = [f"127.0.0.1:{https}"]
    (tmp_path / "caddy.json").write_text(json.dumps(configuration))
    root = tmp_path / "caddy/pki/authorities/local/root.crt"

    with opened(tmp_path, "", "redis://127.0.0.1:1/0", port=api) as harness:
        harness.start("app.main")
        run = [caddy, "run", "--config", str(tmp_path / "caddy.json")]
        with (tmp_path / "caddy.log").open("wb") as log:
            process = subprocess.Popen(run, env=home, stdout=log, stderr=log, preexec_fn=die_with_parent)  # noqa: PLW1509
        harness.processes.append(process)
        eventually(root.is_file, what=f"the certificate\n{(tmp_path / 'caddy.log').read_text()}")
        with httpx.Client(verify=ssl.create_default_context(cafile=str(root)), timeout=20.0) as client:
            url = f"https://localhost:{https}"
            eventually(lambda: answers(client, f"{url}/livez"), what="the API through the proxy")
            ready = client.get(f"{url}/readyz").json()
            crossing = client.post(f"{url}/datasets", headers={"Origin": "https://elsewhere.example"})

    assert ready["checks"]["database"] == {"status": "ok"}
    assert (crossing.status_code, crossing.json()["type"]) == (403, "/problems/cross-site")


def answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == 200
    except httpx.TransportError:
        return False
