"""`make test-compose`: the deployment as an operator meets it, on a machine without a Docker engine.

Builds both images from the Dockerfile, brings the stack up with the real Compose, and walks the demo, upload, job and
prediction through it with the key. The training container is killed in mid-job; Caddy serves the stack over TLS and
Prometheus reads it (profiles `tls` and `monitoring`, without Grafana); the stack is taken down and up again, and once
restored from a backup with the commands of docs/deployment.md.

Needs root and Debian's packages buildah, podman, runc, netavark, aardvark-dns, catatonit, iptables and debootstrap; the
package indexes of pip and apt; 30 GB below TMPDIR (/var/tmp), which are given back. `--keep FOLDER` works there, keeps
images and caches for the next run, and still removes containers, volumes, networks and mounts.

The engine is podman, with stand-ins for the official images (`images.py`), without a GPU: what only the official
images, Docker itself or the NVIDIA runtime do is not tested here.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import secrets
import shutil
import signal
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import yaml

from ml.scenes import generate
from tests.compose import images
from tests.compose.engine import MOST_PROCESSES, NEEDED, Engine
from tests.servers import eventually, free_port

COMPOSE = Path(sys.executable).with_name("docker-compose")
PROJECT = "denlltest"
FILES = ("docker-compose.yml", "docker-compose.cpu.yml")
SECRETS = ("DENLL_ADMIN_KEY", "DENLL_INFERENCE_SECRET", "POSTGRES_PASSWORD", "REDIS_PASSWORD")
OURS = ("api", "dispatcher", "supervisor-jobs", "supervisor-datasets", "inference")
EPOCHS = 12
TRAINING = {"method": "ce", "network": "small", "epochs": EPOCHS, "batch_size": 64, "image_size": 32, "seed": 3}
BEFORE_KILL = 3  # epochs
ALL = ("--profile=*",)  # what is taken down
ROOT_CERTIFICATE = "/data/caddy/pki/authorities/local/root.crt"
# User, effective capabilities, first process; then whatever should not be: a writable root, tools to build with.
LOOK = """
id -u
sed -n 's/^CapEff:\\s*//p' /proc/self/status
cat /proc/1/comm
touch /srv/denll/mark 2> /dev/null && echo writable
for tool in uv pip pip3 gcc cc make; do command -v $tool; done
"""


class Stack:
    """The project under its own name and on a free loopback port, beside whatever else runs here."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.port = free_port()
        keys = {name: secrets.token_hex(24) for name in SECRETS}
        self.engine.environment |= keys | {
            "PUBLISH": f"127.0.0.1:{self.port}",
            "CPU_WORKER": "worker",  # the image without CUDA needs an index that not every machine reaches
        }
        self.client = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {keys['DENLL_ADMIN_KEY']}"},
            timeout=60.0,
        )

    def _files(self) -> list[Path]:
        """The project's files, and one for this engine: it would raise the processes that a container may have where a
        service has limits of its own, which not every machine allows."""
        file = self.engine.folder / "temporary" / "limits.yml"
        names = yaml.safe_load((images.ROOT / FILES[0]).read_text())["services"]
        file.write_text(yaml.safe_dump({"services": {name: {"ulimits": {"nproc": MOST_PROCESSES}} for name in names}}))
        return [*(images.ROOT / name for name in FILES), file]

    def compose(self, *arguments: str) -> str:
        files = [part for file in self._files() for part in ("--file", str(file))]
        return self.engine.run(COMPOSE, "--project-name", PROJECT, *files, *arguments, timeout=600)

    def shell(self, script: str) -> None:
        """Commands as an operator types them; `docker compose` is this stack's."""
        folder = self.engine.folder / "temporary"
        files = " ".join(f"--file {file}" for file in self._files())
        docker = folder / "docker"
        docker.write_text(f'#!/bin/sh\nshift\nexec {COMPOSE} --project-name {PROJECT} {files} "$@"\n')
        docker.chmod(0o755)
        self.engine.run("env", f"--chdir={folder}", f"PATH={folder}:{os.environ['PATH']}", "bash", "-ec", script)

    def start(self, *services: str) -> None:
        """All services that need no profile, or only those that are named."""
        self.compose(
            *(ALL if services else ()), "up", "--detach", "--no-build", "--pull=never", "--quiet-pull", *services
        )

    def up(self) -> None:
        self.start()
        eventually(self.ready, seconds=180, what="/readyz without anything missing")

    def ready(self) -> bool:
        try:
            answer = self.client.get("/readyz")
        except httpx2.TransportError:
            return False
        return answer.status_code == 200 and answer.json()["status"] == "ok"

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service)

    def get(self, path: str) -> dict[str, Any]:
        return answered(self.client.get(path))


def answered(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.is_success, f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}"
    body: dict[str, Any] = answer.json()
    return body


def main() -> None:
    options = argparse.ArgumentParser(description="The containers for real")
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="work there and keep images and caches")
    keep: Path | None = options.parse_args().keep
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        sys.exit(f"Not found: {', '.join(missing)}. apt-get install {' '.join(NEEDED)} netavark aardvark-dns")
    if os.geteuid() != 0:
        sys.exit("Building images and namespaces here needs root.")
    began = time.monotonic()
    with engine(keep) as podman:
        with step("stand-ins for the images of a registry"):
            images.stand_ins(podman)
        sizes = {}
        for target in ("api", "worker"):
            with step(f"image {target} from the Dockerfile"):
                sizes[target] = images.size_bytes(podman, images.build(podman, target))
        base = images.size_bytes(podman, images.names()["python"])
        for target, size in sizes.items():
            print(f"  {target}: {(size - base) / 1e6:,.0f} MB on a base of {base / 1e6:,.0f} MB")
        with podman.serving():
            story(Stack(podman))
    print(f"1 passed, 0 failed  ({time.monotonic() - began:.0f} s)")


@contextlib.contextmanager
def engine(keep: Path | None) -> Iterator[Engine]:
    folder = keep or Path(tempfile.mkdtemp(prefix="denll-compose-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    folder.mkdir(parents=True, exist_ok=True)
    made = Engine(folder.resolve())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    try:
        yield made
    finally:
        made.clean() if keep else made.remove_all()


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    began = time.monotonic()
    print(f"{what} ...", flush=True)
    yield
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


def story(stack: Stack) -> None:
    try:
        with step("up"):
            stack.up()
        with step("hardening, as the containers have it"):
            hardened(stack)
        with step("the demo, against it"):
            print(demo(stack))
        with step("upload"):
            dataset = upload(stack)
        with step(f"job, its container killed after {BEFORE_KILL} epochs"):
            job = train_through_a_kill(stack, dataset)
        with step("predict"):
            before = snapshot(stack, dataset, job)
        print(stack.engine.podman("stats", "--no-stream", "--format={{.Name}} {{.MemUsage}}"))
        with step("profile tls"):
            over_tls(stack, job)
        with step("profile monitoring"):
            monitored(stack)
        with step("down"):
            stack.compose(*ALL, "down")
        with step("up again"):
            stack.up()
        with step("nothing lost"):
            unchanged(stack, before)
        save, restore = page_commands("Backup and restore")
        with step("backup, as the page says"):
            stack.shell(save)
        with step("everything gone"):
            stack.compose(*ALL, "down", "--volumes")
        with step("restore, as the page says"):
            stack.shell(restore)
            eventually(stack.ready, seconds=180, what="/readyz without anything missing")
        with step("nothing lost"):
            unchanged(stack, before)
    except BaseException:
        print(stack.compose("ps", "--all"), stack.compose("logs", "--no-color", "--tail=40"), sep="\n", file=sys.stderr)
        raise
    finally:
        stack.client.close()
        stack.compose(*ALL, "down", "--volumes", "--timeout=5")


def hardened(stack: Stack) -> None:
    assert stack.client.get("/jobs", headers={"Authorization": "Bearer wrong"}).status_code == 401
    for service in OURS:
        container = stack.container(service)
        facts = stack.engine.inspect(container)
        assert facts["HostConfig"]["ReadonlyRootfs"], service
        assert facts["HostConfig"]["Memory"] > 0, service
        user, capabilities, first, *left = stack.engine.execute(container, "sh", "-c", LOOK).stdout.splitlines()
        assert (user, int(capabilities, 16)) == ("10001", 0), service
        assert first != "python", service  # an init reaps what children leave
        assert left == [], service
    assert stack.engine.execute(stack.container("api"), "python", "-c", "import torch").returncode != 0
    for service in ("postgres", "redis"):
        facts = stack.engine.inspect(stack.container(service))
        assert not any(facts["HostConfig"]["PortBindings"].values()), service
    for service in (*OURS, "postgres", "redis"):
        eventually(functools.partial(is_healthy, stack, service), seconds=120, what=f"{service} healthy")


def is_healthy(stack: Stack, service: str) -> bool:
    return health(stack, service) == "healthy"


def health(stack: Stack, service: str) -> str:
    state = stack.engine.inspect(stack.container(service))["State"]
    return str((state.get("Health") or state["Healthcheck"])["Status"])


def demo(stack: Stack) -> str:
    """Run what `make demo` runs, with address and key in the environment as the README says; its output."""
    variables = [f"DENLL_URL={stack.client.base_url}", f"DENLL_ADMIN_KEY={stack.engine.environment['DENLL_ADMIN_KEY']}"]
    folder = stack.engine.folder / "temporary"
    return stack.engine.run(
        "env", f"--chdir={folder}", f"PYTHONPATH={images.ROOT}", *variables, sys.executable, "-m", "examples.demo"
    )


def upload(stack: Stack) -> str:
    archive = stack.engine.folder / "temporary" / "scenes.zip"
    generate.write_archive(archive, train=1200, test=200, seed=5, noise="ordinary", noise_rate=0.2)
    with archive.open("rb") as file:
        fields = {"name": "scenes", "label_column": "label", "clean_column": "clean"}
        dataset = answered(
            stack.client.post("/datasets", data=fields, files={"file": (archive.name, file, "application/zip")})
        )
    path = f"/datasets/{dataset['id']}"
    eventually(lambda: stack.get(path)["status"] != "ingesting", seconds=60, what="the data set is checked")
    assert stack.get(path)["status"] == "ready", stack.get(path)
    return path


def train_through_a_kill(stack: Stack, dataset: str) -> str:
    job = answered(stack.client.post("/jobs", json={"dataset_id": dataset.rpartition("/")[2], **TRAINING}))
    path = f"/jobs/{job['id']}"
    victim = stack.container("supervisor-jobs")
    eventually(lambda: len(epochs(stack, path)) >= BEFORE_KILL, seconds=240, what=f"{BEFORE_KILL} epochs")
    pid = int(stack.engine.inspect(victim)["State"]["Pid"])
    os.kill(pid, signal.SIGKILL)  # of the container's first process: the kernel ends the rest, as it does out of memory
    assert stack.get(path)["status"] == "running", "the job ended before its container was killed"
    eventually(lambda: stack.get(path)["status"] not in {"queued", "running"}, seconds=360, what="the job's end")
    ended = stack.get(path)
    assert ended["status"] == "succeeded", ended
    assert ended["attempt"] == 2, ended
    measured = epochs(stack, path)
    assert measured == list(range(1, EPOCHS + 1)), "an epoch is missing or doubled"
    restarted = stack.engine.inspect(victim)["State"]
    assert restarted["Running"], "the engine did not restart the killed container"
    assert restarted["Pid"] != pid
    return path


def over_tls(stack: Stack, job: str) -> None:
    """The API through Caddy, by a certificate of its own authority: a job, its events, and the check of `Origin`."""
    port = free_port()
    published = {"TLS_PUBLISH": f"127.0.0.1:{port}", "TLS_REDIRECT_PUBLISH": f"127.0.0.1:{free_port()}"}
    stack.engine.environment |= published
    stack.start("caddy")
    caddy = stack.container("caddy")
    reads = ("cat", ROOT_CERTIFICATE)
    eventually(lambda: stack.engine.execute(caddy, *reads).returncode == 0, seconds=60, what="Caddy's authority")
    trusted = ssl.create_default_context(cadata=stack.engine.execute(caddy, *reads).stdout)
    with httpx2.Client(base_url=f"https://localhost:{port}", headers=stack.client.headers, verify=trusted) as client:
        eventually(lambda: serves(client), seconds=60, what="the API over TLS")
        assert answered(client.get(job)) == stack.get(job)
        events = client.get(f"{job}/events", timeout=60.0)
        assert events.headers["Content-Type"].startswith("text/event-stream"), events.headers
        assert "event: status" in events.text, "the events of a job that has ended end"
        crossing = client.post("/datasets", headers={"Origin": "https://elsewhere.example"})
        assert (crossing.status_code, crossing.json()["type"]) == (403, "/problems/cross-site")


def serves(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def monitored(stack: Stack) -> None:
    """Prometheus reads the API with a key of its own, and finds no fault in our rules."""
    key = answered(stack.client.post("/keys", json={"name": "prometheus", "scopes": ["read"]}))["key"]
    stack.engine.environment["METRICS_KEY"] = key
    stack.start("prometheus")
    prometheus = stack.container("prometheus")
    asks = ("promtool", "query", "instant", "http://localhost:9090")

    def value(expression: str) -> str:
        return stack.engine.execute(prometheus, *asks, expression).stdout

    eventually(lambda: value('up{job="denll"} == 1') != "", seconds=90, what="the API among Prometheus' targets")
    eventually(lambda: value('denll_jobs{state="succeeded"} > 0') != "", seconds=60, what="the job that has ended")
    rules = stack.engine.execute(prometheus, "promtool", "check", "rules", "/etc/prometheus/rules.yml")
    assert rules.returncode == 0, rules.stderr


def epochs(stack: Stack, job: str) -> list[int]:
    """The epochs that the job has measured."""
    epochs: list[int] = stack.get(f"{job}/metrics")["epoch"]
    return epochs


def page_commands(section: str) -> list[str]:
    """The shell blocks of a section of the operator's page."""
    text = (images.ROOT / "docs/deployment.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def unchanged(stack: Stack, before: dict[str, Any]) -> None:
    dataset, job = list(before)[:2]
    after = snapshot(stack, dataset, job)
    assert after == before, {path: (before[path], after[path]) for path in before if before[path] != after[path]}


def snapshot(stack: Stack, dataset: str, job: str) -> dict[str, Any]:
    """Everything a client can see of what was made, without what a clock put in."""
    facts = {path: stack.get(path) for path in (dataset, job, f"{job}/metrics", f"{job}/label-issues")}
    model = f"/models/{facts[job]['model_id']}"
    prediction = stack.get(f"/predict?image=dataset:{dataset.rpartition('/')[2]}/0&model={facts[job]['model_id']}")
    prediction.pop("timing_seconds", None)
    return facts | {model: stack.get(model), "prediction": prediction}


if __name__ == "__main__":
    main()
