"""The workflows: what they may do, what they test, and that nothing is named before it was scanned and signed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployment.test_containers import GPU, resolved
from tests.deployment.test_images import TARGETS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github/workflows"
CI, RELEASE = ((FOLDER / name).read_text() for name in ("ci.yml", "release.yml"))


def jobs(workflow: str) -> dict[str, dict[str, Any]]:
    parsed: dict[str, dict[str, Any]] = yaml.safe_load(workflow)["jobs"]
    return parsed


@pytest.mark.parametrize("workflow", [CI, RELEASE], ids=["ci", "release"])
def test_actions_are_exact_commits_and_jobs_may_only_read(workflow: str) -> None:
    actions = re.findall(r"uses: (\S+)", workflow)

    assert yaml.safe_load(workflow)["permissions"] == {"contents": "read"}
    assert actions
    assert all(re.search(r"@[0-9a-f]{40}$", action) or action.startswith("./") for action in actions)
    for name, job in jobs(workflow).items():
        assert "uses" in job or job["timeout-minutes"] <= 120, name
        for step in job.get("steps", ()):  # what somebody outside may choose is no text of a script
            assert "github.event" not in step.get("run", ""), name


@pytest.mark.parametrize("workflow", [CI, RELEASE], ids=["ci", "release"])
def test_every_script_is_one_that_bash_reads(workflow: str) -> None:
    for job in jobs(workflow).values():
        for step in job.get("steps", ()):
            script = re.sub(r"\$\{\{.*?\}\}", "x", step.get("run", ""))
            subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_every_python_that_the_page_promises_is_tested() -> None:
    [versions] = re.findall(r"Python (3\.\d+) to (3\.\d+)", (ROOT / "README.md").read_text())
    first, last = (int(version.partition(".")[2]) for version in versions)
    tested = jobs(CI)["test"]["strategy"]["matrix"]["python"]

    assert tested == [f"3.{minor}" for minor in range(first, last + 1)]
    assert f'requires-python = ">=3.{first}"' in (ROOT / "pyproject.toml").read_text()


def test_every_image_is_tested_built_scanned_signed_and_then_named() -> None:
    images = jobs(RELEASE)["images"]
    script = "\n".join(step.get("run", "") for step in images["steps"])
    order = [script.index(part) for part in ("buildx build", "trivy", "cosign sign", "imagetools create")]

    assert set(images["strategy"]["matrix"]["target"]) == set(TARGETS)
    assert images["needs"] == ["version", "test"]
    assert jobs(RELEASE)["test"]["uses"] == "./.github/workflows/ci.yml"
    assert order == sorted(order)
    assert {"--sbom=true", "--provenance=mode=max", "--exit-code"} <= set(script.split())
    assert "push-by-digest=true" in script


def test_a_release_holds_every_file_that_compose_reads() -> None:
    [line] = re.findall(r"^ *(docker-compose\.yml .*)$", RELEASE, re.MULTILINE)
    packed = line.split()
    configs = resolved(GPU, COMPOSE_PROFILES="*")["configs"].values()
    needed = {str(Path(config["file"]).relative_to(ROOT)) for config in configs} | {".env.example", *GPU}

    assert all((ROOT / path).exists() for path in packed)
    assert not [path for path in needed if not any(path == p or path.startswith(f"{p}/") for p in packed)]
