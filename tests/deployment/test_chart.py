"""The Helm chart: rendered by Helm's own library, against Kubernetes' schemas, Compose and the service."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from sqlalchemy import text

from app.db.session import connect, transaction
from app.db.tables import Dataset, Job, State
from app.setting_types import MOST_DEVICES
from app.settings import Settings
from tests.deployment.chart import ALL, CHART, RENDERED, ROOT, render
from tests.deployment.test_agreements import seconds_of
from tests.deployment.test_containers import GPU, STORE, STORE_SETTINGS, resolved
from tests.tables import create_tables

helm = pytest.importorskip("helm_python", reason="Helm's library has wheels for some platforms alone")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:kubernetes_validate")

CUSTOM = {"ScaledObject", "TriggerAuthentication"}  # KEDA's, which have no schema in Kubernetes
DEFAULT: dict[str, Any] = {}


@pytest.fixture(scope="module", params=[DEFAULT, ALL], ids=["default", "all"])
def resources(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(request.param)


def templates(resources: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The templates of pods, by what they run."""
    return {
        one["metadata"]["name"].removeprefix("denll-"): one["spec"]["template"]
        for one in resources
        if "template" in one["spec"]
    }


def pods(resources: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The specifications of pods, by what they run."""
    return {name: template["spec"] for name, template in templates(resources).items()}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["containers"]
    assert isinstance(only, dict)
    return only


def variables(pod: dict[str, Any]) -> dict[str, str]:
    """The environment of a pod; what comes from a Secret is the name of its key."""
    entries = container(pod)["env"]
    names = [entry["name"] for entry in entries]
    assert len(names) == len(set(names)), names
    return {e["name"]: e.get("value") or e["valueFrom"]["secretKeyRef"]["key"] for e in entries}


def test_helm_finds_no_fault() -> None:
    report = helm.lint(str(CHART))

    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


def test_it_renders_what_it_rendered() -> None:
    """A change of the chart shows as one of this file: `python -m tests.deployment.chart` writes it."""
    assert render(ALL) == list(yaml.safe_load_all(RENDERED.read_text()))


def test_kubernetes_accepts_every_resource(resources: list[dict[str, Any]]) -> None:
    version = kubernetes_validate.latest_version()
    known = [resource for resource in resources if resource["kind"] not in CUSTOM]

    [used] = {kubernetes_validate.validate(resource, version, strict=True) for resource in known}
    assert version.startswith(used)


@pytest.mark.parametrize("wrong", [{"traning": {}}, {"training": {"gpus": MOST_DEVICES + 1}}, {"settings": {"X": "1"}}])
def test_values_that_it_does_not_know_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmError):
        render(wrong)
    render({"training": {"gpus": MOST_DEVICES}})


def test_the_version_is_that_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    [project] = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert chart["version"] == chart["appVersion"] == project
    assert {container(pod)["image"] for pod in pods(render({})).values()} == {
        f"denll-{name}:{project}" for name in ("api", "worker")
    }


def test_every_pod_is_hardened_as_a_container_of_compose(resources: list[dict[str, Any]]) -> None:
    for name, pod in pods(resources).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["shareProcessNamespace"] is True, name  # zombies are reaped
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (10001, True), name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert container(pod)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert container(pod)["resources"]["limits"]["memory"], name
        assert not any("hostPath" in volume for volume in pod["volumes"]), name


def test_each_pod_runs_what_the_service_of_compose_runs(resources: list[dict[str, Any]]) -> None:
    services = resolved(GPU)["services"]
    for name, pod in pods(resources).items():
        service = services[name]
        command = [*(service["entrypoint"] or []), *(service["command"] or [])] or None

        assert container(pod).get("command") == command, name
        assert (
            container(pod)["image"].rpartition("denll-")[2].partition(":")[0]
            == (service["image"].removeprefix("denll-").partition(":")[0])
        ), name
        grace = pod.get("terminationGracePeriodSeconds")
        assert grace is None or grace == seconds_of(service["stop_grace_period"]), name


def test_each_pod_has_the_secrets_that_its_service_has_in_compose(resources: list[dict[str, Any]]) -> None:
    secret = {"DENLL_DATABASE_URL", "DENLL_REDIS_URL", "DENLL_ADMIN_KEY", "DENLL_INFERENCE_SECRET"}
    known = {f"DENLL_{name.upper()}" for name in Settings.model_fields} | {"FORWARDED_ALLOW_IPS"}
    for name, pod in pods(resources).items():
        chosen = variables(pod)

        assert chosen.keys() <= known, name
        assert secret & chosen.keys() == secret & resolved(GPU)["services"][name]["environment"].keys(), name
        keys = {e["name"] for e in container(pod)["env"] if "valueFrom" in e}
        assert keys == secret & chosen.keys(), name


def test_a_training_pod_has_as_many_gpus_as_its_supervisor_offers() -> None:
    for gpus, devices in ((0, "cpu"), (1, "cuda:0"), (2, "cuda:0,cuda:1")):
        pod = pods(render({"training": {"gpus": gpus}}))["supervisor-jobs"]

        assert variables(pod)["DENLL_DEVICES"] == devices
        assert container(pod)["resources"]["limits"].get("nvidia.com/gpu", 0) == gpus
        Settings(devices=devices)


def test_every_pod_but_the_migration_mounts_the_data_that_all_share(resources: list[dict[str, Any]]) -> None:
    claims = {
        name: [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if volume["name"] == "data"]
        for name, pod in pods(resources).items()
        if name != "migrate"
    }
    [claim] = [one for one in resources if one["kind"] == "PersistentVolumeClaim"]

    assert set(map(tuple, claims.values())) == {(claim["metadata"]["name"],)}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(resources).values():
        assert {mount["mountPath"] for mount in container(pod)["volumeMounts"]} >= {"/data", "/tmp"}
    assert not [one for one in render({"data": {"existingClaim": "ours"}}) if one["kind"] == "PersistentVolumeClaim"]


def test_the_schema_is_new_before_any_pod_is(resources: list[dict[str, Any]]) -> None:
    hooks = {
        one["metadata"]["name"]: one["metadata"]["annotations"]["helm.sh/hook"]
        for one in resources
        if one["kind"] == "Job"
    }

    assert hooks == {"denll-migrate": "pre-install,pre-upgrade", "denll-weights": "post-install,post-upgrade"}


def test_no_outage_of_the_database_restarts_what_trains(resources: list[dict[str, Any]]) -> None:
    for name in ("dispatcher", "supervisor-jobs", "supervisor-datasets"):
        assert "livenessProbe" not in container(pods(resources)[name]), name
        assert container(pods(resources)[name])["readinessProbe"]["exec"]["command"][-1] == "heartbeat"


def test_the_api_knows_every_inference_process_and_the_names_that_lead_to_it() -> None:
    everything = render(ALL)
    [inference] = [one for one in everything if one["kind"] == "StatefulSet"]
    environment = variables(pods(everything)["api"])
    hosts = environment["DENLL_ALLOWED_HOSTS"].split(",")

    assert environment["DENLL_INFERENCE_ADDRESSES"].split(",") == [
        f"tcp://denll-inference-{number}.{inference['spec']['serviceName']}:8001" for number in range(2)
    ]
    assert {"denll-api", "denll-api.denll.svc", "denll.example.org", "denll.internal"} <= set(hosts)


def test_every_pod_has_a_network_policy_and_only_the_api_and_inference_are_reached(
    resources: list[dict[str, Any]],
) -> None:
    labels = {name: template["metadata"]["labels"].items() for name, template in templates(resources).items()}
    policies = {
        one["metadata"]["name"].removeprefix("denll-"): one["spec"]
        for one in resources
        if one["kind"] == "NetworkPolicy"
    }

    def chosen(selector: dict[str, Any]) -> set[str]:
        return {name for name, its in labels.items() if selector["matchLabels"].items() <= its}

    assert {name: chosen(policy["podSelector"]) for name, policy in policies.items()} == {n: {n} for n in labels}
    assert {name for name, policy in policies.items() if policy["ingress"]} == {"api", "inference"}
    assert policies["weights"]["egress"] == []
    [rule] = policies["inference"]["ingress"]
    assert chosen(rule["from"][0]["podSelector"]) == {"api"}


def test_keda_counts_the_jobs_that_wait_and_run(database_url: str, tmp_path: Path) -> None:
    """Its query, asked of both databases: without `queued` none would start, without `running` one would be ended."""
    everything = {one["kind"]: one for one in render(ALL)}
    [trigger] = everything["ScaledObject"]["spec"]["triggers"]
    deployments = [one for one in render(ALL) if one["kind"] == "Deployment"]
    [scaled] = [one for one in deployments if one["metadata"]["name"].endswith("supervisor-jobs")]
    settings = Settings(database_url=database_url, data_dir=tmp_path)
    engine = connect(settings)
    create_tables(engine)
    with transaction(engine) as session:
        dataset = uuid.uuid4()
        session.add(Dataset(id=dataset, name="d", upload={}, state=State.succeeded))
        session.flush()
        session.add_all([Job(dataset_id=dataset, state=state, request={}, spec={}) for state in State])
        counted = session.execute(text(trigger["metadata"]["query"])).scalar_one()
    engine.dispose()

    assert counted == 2
    assert "replicas" not in scaled["spec"]  # who scales it decides
    assert everything["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == scaled["metadata"]["name"]
    assert not CUSTOM & {one["kind"] for one in render({})}


OBJECT_STORE = {
    "objectStore": {"url": "s3://denll/x", "endpoint": "https://minio.example.org", "key": "service"},
    "networkPolicy": {"serverPorts": [5432, 6379, 9000]},
}


def test_with_an_object_store_pods_share_no_volume() -> None:
    resources = render(OBJECT_STORE)
    services = resolved(STORE, **STORE_SETTINGS)["services"]
    publishing = {name for name, service in services.items() if "DENLL_OBJECT_STORE" in service["environment"]}

    assert not [one for one in resources if one["kind"] == "PersistentVolumeClaim"]
    with_store = set()
    for name, pod in pods(resources).items():
        assert [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "data"], name
        chosen = variables(pod)
        if chosen.get("DENLL_OBJECT_STORE") == "s3://denll/x":
            with_store.add(name)
            assert chosen["DENLL_OBJECT_STORE_SECRET"] == "object-store-secret", name
            keys = [e["name"] for e in container(pod)["env"] if "valueFrom" in e]
            assert "DENLL_OBJECT_STORE_SECRET" in keys, name
            store: dict[str, Any] = {
                f: chosen[f"DENLL_{f.upper()}"] for f in ("object_store_endpoint", "object_store_key")
            }
            Settings(**store)
    assert with_store == pods(resources).keys() - {"migrate"}
    assert with_store - {"weights"} == publishing - {"publish-weights"}
    version = kubernetes_validate.latest_version()
    assert {kubernetes_validate.validate(one, version, strict=True) for one in resources}


def test_every_pod_with_an_object_store_may_reach_it() -> None:
    resources = render(OBJECT_STORE)
    for policy in (one for one in resources if one["kind"] == "NetworkPolicy"):
        ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}

        assert {53, 9000} <= ports, policy["metadata"]["name"]


def test_a_role_of_the_pods_needs_no_key() -> None:
    pod = pods(render({"objectStore": {"url": "s3://denll"}}))["api"]

    assert not {"DENLL_OBJECT_STORE_KEY", "DENLL_OBJECT_STORE_SECRET"} & variables(pod).keys()
