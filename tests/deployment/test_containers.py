"""Compose resolves the files as for an operator; every law is read from what it resolves, not from the text."""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SECRETS = {
    "DENLL_ADMIN_KEY": "a" * 24,
    "DENLL_INFERENCE_SECRET": "d" * 24,
    "POSTGRES_PASSWORD": "b" * 24,
    "REDIS_PASSWORD": "c" * 24,
}
GPU = ("docker-compose.yml",)
CPU = (*GPU, "docker-compose.cpu.yml")
STORE = (*GPU, "docker-compose.object-store.yml")
STORE_SETTINGS = {"OBJECT_STORE": "s3://denll/x", "OBJECT_STORE_ENDPOINT": "https://minio.example.org"}
OURS = {"migrate", "api", "dispatcher", "supervisor-jobs", "supervisor-datasets", "inference"}
LASTING = OURS - {"migrate"} | {"postgres", "redis"}
ONCE = {"migrate", "weights"}


def compose(files: tuple[str, ...], environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`docker compose config` with no variable but these, and no .env of whoever runs the tests."""
    chosen = [part for name in files for part in ("--file", str(ROOT / name))]
    return subprocess.run(
        [str(BIN / "docker-compose"), "--env-file", os.devnull, *chosen, "config", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@functools.cache
def resolved(files: tuple[str, ...], **more: str) -> dict[str, Any]:
    done = compose(files, SECRETS | more, "--format=json")
    assert done.returncode == 0, done.stderr
    configuration: dict[str, Any] = json.loads(done.stdout)
    return configuration


@pytest.fixture(scope="module", params=[GPU, CPU], ids=["gpu", "cpu"])
def stack(request: pytest.FixtureRequest) -> dict[str, Any]:
    return resolved(request.param)


@pytest.fixture(scope="module")
def services(stack: dict[str, Any]) -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = stack["services"]
    return services


@pytest.mark.parametrize("files", [GPU, CPU], ids=["gpu", "cpu"])
def test_compose_accepts_the_files(files: tuple[str, ...]) -> None:
    done = compose(files, SECRETS, "--quiet")

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("is_set", [False, True], ids=["unset", "empty"])
def test_compose_refuses_without_a_secret(secret: str, is_set: bool) -> None:
    environment = {name: value for name, value in SECRETS.items() if name != secret}
    done = compose(GPU, environment | dict.fromkeys([secret] if is_set else [], ""), "--quiet")

    assert done.returncode != 0
    assert f"{secret} is missing a value" in done.stderr


def test_the_example_sets_no_secret_and_names_every_variable_that_the_files_read() -> None:
    example = (ROOT / ".env.example").read_text()
    offered = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", example, re.MULTILINE))
    read = set(re.findall(r"\$\{([A-Z_]+)", "".join((ROOT / name).read_text() for name in {*CPU, *STORE})))

    assert offered.keys() == read
    assert {name for name, value in offered.items() if name in SECRETS and value} == set()


def test_an_object_store_reaches_who_reads_or_publishes_files_and_is_reached_by_them() -> None:
    done = compose(STORE, SECRETS, "--quiet")
    assert done.returncode != 0
    assert "OBJECT_STORE is missing a value" in done.stderr

    secret = {"OBJECT_STORE_KEY": "service", "OBJECT_STORE_SECRET": "a-secret"}
    services = resolved(STORE, **STORE_SETTINGS, **secret)["services"]
    with_store = {name for name, service in services.items() if "DENLL_OBJECT_STORE" in service["environment"]}
    assert with_store == OURS - {"migrate"} | {"publish-weights"}
    for name in with_store:
        assert "outside" in services[name]["networks"], name
        stores = {
            k: v for k, v in services[name]["environment"].items() if k.startswith(("DENLL_OBJECT", "DENLL_CACHE"))
        }
        Settings(**{key.removeprefix("DENLL_").lower(): value for key, value in stores.items() if "STORE" not in key})
        assert stores["DENLL_OBJECT_STORE_SECRET"] == "a-secret", name
    assert not {"DENLL_DATABASE_URL", "DENLL_REDIS_URL"} & services["publish-weights"]["environment"].keys()


def test_the_stack_is_what_the_page_says(services: dict[str, dict[str, Any]]) -> None:
    assert services.keys() == LASTING | ONCE


def test_every_setting_of_a_service_is_one_that_we_have(services: dict[str, dict[str, Any]]) -> None:
    known = {f"DENLL_{name.upper()}" for name in Settings.model_fields}
    for name in OURS | ONCE:
        variables = dict(services[name]["environment"])
        if name == "api":
            assert ipaddress.ip_network(variables.pop("FORWARDED_ALLOW_IPS")).is_private  # uvicorn's

        assert variables.keys() <= known, name
        Settings(**{key.removeprefix("DENLL_").lower(): value for key, value in variables.items()})


def test_nothing_but_the_api_is_published_and_that_on_loopback(services: dict[str, dict[str, Any]]) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}

    assert published.keys() == {"api"}
    assert [port["host_ip"] for port in published["api"]] == ["127.0.0.1"]


def test_the_published_address_can_be_chosen() -> None:
    ports = resolved(GPU, PUBLISH="0.0.0.0:9000")["services"]["api"]["ports"]

    assert [(port["host_ip"], port["published"]) for port in ports] == [("0.0.0.0", "9000")]


def test_only_the_api_and_what_adds_weights_have_a_way_out(stack: dict[str, Any]) -> None:
    outer = {name for name, network in stack["networks"].items() if not network.get("internal")}
    reaching = {name for name, service in stack["services"].items() if outer & service["networks"].keys()}

    assert reaching == {"api", "weights"}


def test_what_downloads_weights_on_demand_reaches_nothing_of_ours(services: dict[str, dict[str, Any]]) -> None:
    weights = services["weights"]

    assert weights["networks"].keys() == {"outside"}
    assert weights["command"] == ["add", "--bundled"]  # without an operator's command it installs what the image has
    assert not [secret for secret in SECRETS.values() if secret in json.dumps(weights)]
    assert weights["image"] == services["inference"]["image"]


def test_a_secret_reaches_only_who_needs_it(services: dict[str, dict[str, Any]]) -> None:
    def holders(secret: str) -> set[str]:
        return {name for name, service in services.items() if SECRETS[secret] in json.dumps(service)}

    assert holders("DENLL_ADMIN_KEY") == {"api"}
    assert holders("DENLL_INFERENCE_SECRET") == {"api", "inference"}
    assert holders("POSTGRES_PASSWORD") == OURS | {"postgres"}
    assert holders("REDIS_PASSWORD") == OURS - {"migrate", "inference"} | {"redis"}


def test_only_the_api_lets_people_log_in() -> None:
    login = {"DENLL_OIDC_ISSUER": "https://sso.example.org", "DENLL_OIDC_CLIENT_SECRET": "e" * 24}
    services = resolved(GPU, **login)["services"]

    for value in login.values():
        assert {name for name, service in services.items() if value in json.dumps(service)} == {"api"}


def test_no_secret_stands_in_a_command_line(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        commands = json.dumps([service.get("command"), service.get("entrypoint"), service.get("healthcheck")])

        assert not [secret for secret, value in SECRETS.items() if value in commands], name


def test_every_container_is_hardened(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["init"] is True, name  # children of children are reaped
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert not service.get("cap_add"), name
        assert not service.get("privileged"), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0, name
        assert int(service["pids_limit"]) > 0, name
        assert service["ulimits"].keys() == {"core", "nofile"}, name
        assert not service["ulimits"]["core"], name  # soft and hard are 0, which Compose leaves out
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert {mount["type"] for mount in service["volumes"]} == {"volume"}, name  # nothing of the host


def test_what_comes_from_a_registry_is_an_exact_version_and_does_not_run_as_root(
    services: dict[str, dict[str, Any]],
) -> None:
    for name in ("postgres", "redis"):
        assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?-[a-z]+", services[name]["image"]), name
        assert services[name]["user"] == name


@pytest.mark.parametrize(("files", "worker"), [(GPU, "worker"), (CPU, "worker-cpu")], ids=["gpu", "cpu"])
def test_the_two_images_are_built_here_each_once(files: tuple[str, ...], worker: str) -> None:
    services = resolved(files)["services"]
    built = {service["image"]: service["build"]["target"] for service in services.values() if "build" in service}

    assert built == {"denll-api:local": "api", f"denll-{worker}:local": worker}
    assert {services[name]["image"] for name in OURS | {"weights"}} == set(built)
    assert sum("build" in service for service in services.values()) == len(built)


def test_published_images_are_those_of_one_registry_and_one_version() -> None:
    published = {"REGISTRY": "registry.example.org/denll/", "DENLL_VERSION": "1.2.3"}
    for files, worker in ((GPU, "worker"), (CPU, "worker-cpu")):
        images = {
            service["image"] for name, service in resolved(files, **published)["services"].items() if name in OURS
        }

        assert images == {f"registry.example.org/denll/denll-{name}:1.2.3" for name in ("api", worker)}


def test_health_is_asked_of_all_that_last_in_arguments_without_spaces(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, service in services.items() if "healthcheck" in service} == LASTING
    for name in LASTING:
        test = services[name]["healthcheck"]["test"]

        assert test[0] == "CMD", name
        assert not [part for part in test if " " in part], name


def test_nobody_starts_before_what_it_needs(services: dict[str, dict[str, Any]]) -> None:
    for name in OURS:
        waits = {on: how["condition"] for on, how in services[name]["depends_on"].items()}

        assert waits.pop("postgres") == "service_healthy", name
        if name != "migrate":
            assert waits == {"redis": "service_healthy", "migrate": "service_completed_successfully"}, name


def test_what_dies_comes_back_and_migrations_run_once(services: dict[str, dict[str, Any]]) -> None:
    assert {name: services[name]["restart"] for name in services} == dict.fromkeys(
        LASTING, "unless-stopped"
    ) | dict.fromkeys(ONCE, "no")


def test_what_must_outlive_a_container_lies_in_named_volumes(stack: dict[str, Any]) -> None:
    mounted = {
        name: {mount["source"]: mount["target"] for mount in service.get("volumes", [])}
        for name, service in stack["services"].items()
    }

    assert stack["volumes"].keys() == {"database", "notifications", "files"}
    assert mounted["postgres"] == {"database": "/var/lib/postgresql"}
    assert mounted["redis"] == {"notifications": "/data"}
    for name in OURS | ONCE:
        assert mounted[name] == {"files": stack["services"][name]["environment"]["DENLL_DATA_DIR"]}


def test_redis_keeps_what_it_was_told_and_never_evicts(services: dict[str, dict[str, Any]]) -> None:
    configuration = services["redis"]["command"][-1].splitlines()

    assert {"appendonly yes", "maxmemory-policy noeviction"} <= set(configuration)
    assert configuration[1] == "requirepass $$REDISCLI_AUTH"  # Compose escapes what the container's shell expands


def test_the_gpu_is_reserved_by_who_computes_and_by_nobody_in_the_cpu_override() -> None:
    def reserving(files: tuple[str, ...]) -> set[str]:
        services = resolved(files)["services"]
        return {name for name, service in services.items() if service.get("deploy", {}).get("resources")}

    reservation = resolved(GPU)["services"]["supervisor-jobs"]["deploy"]["resources"]["reservations"]["devices"]

    assert reserving(GPU) == {"supervisor-jobs", "inference"}
    assert reserving(CPU) == set()
    assert reservation == [{"capabilities": ["gpu"], "count": -1, "driver": "nvidia"}]


SNIPPETS = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs/deployment.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[f"{number}" for number in range(1, len(SNIPPETS) + 1)])
def test_every_compose_file_that_the_page_shows_resolves(snippet: str, tmp_path: Path) -> None:
    """Beside our files, as the page says; one that has its own name stands alone."""
    for name in GPU:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "snippet.yml").write_text(snippet)
    alone = snippet.startswith("name:")
    files = [str(tmp_path / name) for name in (*(() if alone else GPU), "snippet.yml")]
    done = compose(tuple(files), SECRETS, "--format=json")

    assert done.returncode == 0, done.stderr
    for name, service in json.loads(done.stdout)["services"].items():
        assert service["read_only"], name
        assert "0.0.0.0" not in [port["host_ip"] for port in service.get("ports", [])], name


def test_the_cpu_override_computes_on_the_cpu() -> None:
    services = resolved(CPU)["services"]

    assert {services[name]["environment"]["DENLL_DEVICES"] for name in ("supervisor-jobs", "inference")} == {"cpu"}
