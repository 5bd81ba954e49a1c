"""The Dockerfile: hadolint, and what it must never do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment.test_containers import GPU, resolved
from worker.supervisor.supervise import CHILD_MODULES

ROOT = Path(__file__).parents[2]
TARGETS = ("api", "worker", "worker-cpu")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# What runs in each image: the services of Compose, children of supervisors, and the commands of the operator's page.
RUNS = {
    "api": (
        "app.main",
        "worker.dispatcher",
        "migrations.__main__",
        "app.healthcheck",
        "worker.backup",
        "worker.retention",
    ),
    "worker": (
        "worker.supervisor.celery_app",
        *CHILD_MODULES.values(),
        "worker.inference.server",
        "app.healthcheck",
        "worker.publish_weights",
        "ml.__main__",
    ),
}


def stages() -> dict[str, str]:
    """Stage -> its text."""
    parts = re.split(r"^FROM .+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def steps(stage: str) -> list[str]:
    """The instructions of a stage, continued lines joined."""
    return stages()[stage].replace("\\\n", "").strip().splitlines()


def test_hadolint_has_no_complaint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--failure-threshold=info", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_is_one_exact_version_not_older_than_the_floor() -> None:
    base = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))["PYTHON_IMAGE"]
    match = re.fullmatch(r"python:3\.11\.(\d+)-slim-[a-z]+", base)
    bases = re.findall(r"^FROM (\S+) AS", DOCKERFILE, re.MULTILINE)

    assert match is not None
    assert int(match[1]) >= 14
    assert set(bases) - stages().keys() == {"${PYTHON_IMAGE}"}


def test_what_ships_runs_as_a_fixed_user_that_is_not_root() -> None:
    for target in TARGETS:
        assert re.findall(r"^USER (\S+)$", stages()[target], re.MULTILINE) == ["10001:10001"]


def test_everything_installed_is_locked_by_hash() -> None:
    installs = re.findall(r"pip (?:install|sync)(?:[^\n]*\\\n)*[^\n]*", DOCKERFILE)

    assert len(installs) == 4
    assert all("--require-hashes" in line for line in installs)
    assert len(re.findall(r"\bpip (?:install|sync) ", DOCKERFILE)) == DOCKERFILE.count("--require-hashes") == 5
    assert "--generate-hashes" in stages()["cpu-lock"]


def test_the_installer_and_its_cache_are_mounted_never_copied() -> None:
    for target in TARGETS:
        [install] = [step for step in steps(target) if "pip sync" in step]

        assert install.startswith("RUN --mount=type=bind,from=installer")
        assert "--mount=type=cache,target=/var/cache/uv" in install
        assert not [step for step in steps(target) if step.startswith("COPY --from=installer")]


def test_no_system_package_is_added() -> None:
    assert "apt" not in DOCKERFILE


def test_the_image_of_the_api_knows_its_version() -> None:
    assert "COPY --from=source /srv/denll/pyproject.toml pyproject.toml" in steps("api")


def test_the_api_image_is_made_from_the_lock_without_torch() -> None:
    assert "worker.txt" not in stages()["api"]
    assert not re.search(r"^torch==", (ROOT / "requirements/api.txt").read_text(), re.MULTILINE)


def test_the_image_for_cpus_is_the_other_one_without_cuda() -> None:
    cuda, cpu = locked("worker.txt"), locked("worker-cpu.txt")
    left_out = {name: version for name, version in cuda.items() if name not in cpu}

    assert cpu.items() <= cuda.items()
    assert {"torch", "torchvision", "nvidia-cublas"} <= left_out.keys()
    assert all(re.match(r"torch$|torchvision$|nvidia-|cuda-", name) for name in left_out)
    assert "worker.txt" not in stages()["worker-cpu"]
    copies = [[step for step in steps(target) if step.startswith(("COPY", "USER", "CMD"))] for target in TARGETS[1:]]
    assert copies[0] == copies[1]


def locked(name: str) -> dict[str, str]:
    """The entries of a lock, hashes included, by package; a package may have one for each of several Pythons."""
    entries = re.split(r"^(?=[a-z0-9])", (ROOT / "requirements" / name).read_text(), flags=re.MULTILINE)
    packages: dict[str, str] = {}
    for entry in filter(None, (re.sub(r"^ *#.*\n?", "", entry, flags=re.MULTILINE) for entry in entries)):
        package = entry.partition("==")[0]
        packages[package] = packages.get(package, "") + entry
    return packages


def test_nothing_of_ours_compiles_kernels_so_that_the_images_need_no_triton() -> None:
    sources = "".join(path.read_text() for folder in ("ml", "worker") for path in (ROOT / folder).rglob("*.py"))

    assert not re.search(r"torch\.compile\(|import triton|max_autotune", sources)
    assert "triton" not in locked("worker.txt")


def test_only_what_the_images_are_made_of_reaches_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    copied = set(re.findall(r"^COPY (?!--from)([\w.-]+)", DOCKERFILE, re.MULTILINE))

    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied


@pytest.mark.parametrize("target", ["api", pytest.param("worker", marks=pytest.mark.slow)])
def test_an_image_has_every_module_that_its_processes_import(target: str, tmp_path: Path) -> None:
    for source, place in re.findall(r"^COPY --from=source /srv/denll/(\S+) (\S+)$", stages()[target], re.MULTILINE):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).symlink_to(ROOT / source)
    program = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    done = subprocess.run(
        [sys.executable, "-c", program, *RUNS[target]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("target", RUNS)
def test_every_process_that_compose_runs_in_an_image_is_known(target: str) -> None:
    services = [one for one in resolved(GPU)["services"].values() if one["image"].startswith(f"denll-{target}:")]
    commands = [[*(one["entrypoint"] or ()), *(one["command"] or ())] for one in services]
    modules = {command[command.index("-m") + 1] for command in commands if command}

    assert modules
    assert all(any(f"{run}.".startswith(f"{module}.") for run in RUNS[target]) for module in modules)
