"""Images: stand-ins for those that the stack takes from a registry, and ours, really built from the Dockerfile.

The stand-ins are this machine's Debian release with its own Python, Postgres, Redis and Prometheus, and the Caddy that
the tests use, under the names that the Dockerfile and Compose ask for. So the base's patch version and the entrypoints
of the official images are not tested. Grafana has none: Debian does not package it.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from pathlib import Path

from tests.compose.engine import Engine

ROOT = Path(__file__).parents[2]
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
CADDY = Path(sys.executable).with_name("caddy")
HUB = "docker.io/"  # where an engine looks for a name without a host
LIBRARY = f"{HUB}library/"  # and for one without an owner

POSTGRES_ENTRYPOINT = """\
#!/bin/sh
# What the official image's entrypoint does, as far as this stack relies on it.
# Its socket lies in /tmp (PGHOST): podman lays a file system of root's over /run.
set -e
export PGDATA=/var/lib/postgresql/data
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  umask 077; export LANG=C.UTF-8
  printf '%s' "$POSTGRES_PASSWORD" > /tmp/secret
  initdb -U "$POSTGRES_USER" --pwfile=/tmp/secret --auth-local=trust --auth-host=scram-sha-256
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
  pg_ctl --options="-c listen_addresses='' -c unix_socket_directories=$PGHOST" --wait start > /dev/null
  createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
  pg_ctl --mode=fast --wait stop > /dev/null
fi
exec "${@:-postgres}" -c listen_addresses='*' -c unix_socket_directories="$PGHOST"
"""

STAND_INS = ("python", "postgres", "redis", "caddy", "prometheus")
INSTALL = (
    "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d",  # no service starts inside a build
    "chmod +x /usr/sbin/policy-rc.d",
    "mkdir -p /etc/postgresql-common",
    "echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf",
    "apt-get update -q",
    "DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends postgresql redis-server prometheus",
    "apt-get clean",
    "ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/",
    "install -d -o redis -g redis /data",
    "install -d -o nobody -g nogroup /prometheus",
)


def names() -> dict[str, str]:
    """The images that the container files name and that have a stand-in, by the program that they are for."""
    text = (ROOT / "Dockerfile").read_text() + (ROOT / "docker-compose.yml").read_text()
    matches = re.findall(rf"(?:PYTHON_IMAGE=|image: )((?:prom/)?({'|'.join(STAND_INS)}):\S+)", text)
    return {program: (HUB if "/" in image else LIBRARY) + image for image, program in matches}


def stand_ins(engine: Engine) -> None:
    """Build what a registry would have given, unless a kept folder still has it."""
    image_names = names()
    assert image_names.keys() == set(STAND_INS), image_names
    if all(_known(engine, image) for image in image_names.values()):
        return
    rootfs = engine.folder / "rootfs"
    release, mirror = platform.freedesktop_os_release()["VERSION_CODENAME"], _mirror(engine)
    packages = "python3,python3-venv,ca-certificates"
    engine.run("debootstrap", "--variant=minbase", f"--include={packages}", release, rootfs, mirror)
    for name in ("python", "python3"):
        (rootfs / "usr/local/bin" / name).symlink_to("/usr/bin/python3")
    shutil.copy(AUTHORITIES, rootfs / "etc/ssl/certs" / AUTHORITIES.name)  # what this machine trusts, a build trusts
    base = engine.run("buildah", "from", "scratch")
    engine.run("buildah", "add", "--quiet", base, rootfs, "/")
    for variable in ("PIP_CERT", "SSL_CERT_FILE"):
        engine.run("buildah", "config", "--env", f"{variable}={AUTHORITIES}", base)
    engine.run("buildah", "commit", "--quiet", "--rm", base, image_names["python"])
    shutil.rmtree(rootfs)
    _servers(engine, image_names)


def _servers(engine: Engine, image_names: dict[str, str]) -> None:
    container = engine.run("buildah", "from", "--pull-never", image_names["python"])
    script = engine.folder / "postgres-entrypoint"
    script.write_text(POSTGRES_ENTRYPOINT)
    script.chmod(0o755)
    engine.run("buildah", "copy", "--quiet", container, script, "/usr/local/bin/postgres-entrypoint")
    install = " && ".join(INSTALL)
    engine.run("buildah", "run", "--isolation=chroot", container, "--", "sh", "-c", install)
    engine.run(
        "buildah", "config", "--entrypoint", '["postgres-entrypoint"]', "--cmd", "", "--env=PGHOST=/tmp", container
    )
    engine.run("buildah", "commit", "--quiet", container, image_names["postgres"])
    engine.run("buildah", "config", "--entrypoint", "[]", "--cmd", "redis-server", container)
    engine.run("buildah", "commit", "--quiet", container, image_names["redis"])
    engine.run("buildah", "config", "--user", "nobody", "--workingdir", "/prometheus", "--cmd", "prometheus", container)
    engine.run("buildah", "commit", "--quiet", "--rm", container, image_names["prometheus"])
    container = engine.run("buildah", "from", "--pull-never", image_names["python"])
    engine.run("buildah", "copy", "--quiet", container, CADDY, "/usr/bin/caddy")
    for variable in ("XDG_CONFIG_HOME=/config", "XDG_DATA_HOME=/data"):
        engine.run("buildah", "config", "--env", variable, container)
    command = "caddy run --config /etc/caddy/Caddyfile --adapter caddyfile"
    engine.run("buildah", "config", "--workingdir", "/srv", "--cmd", command, container)
    engine.run("buildah", "commit", "--quiet", "--rm", container, image_names["caddy"])


def build(engine: Engine, target: str) -> str:
    """One target of our Dockerfile, as an engine's own builder would; the image's name."""
    image = f"{LIBRARY}denll-{target}:local"
    engine.run(
        *("buildah", "build", "--quiet", "--isolation=chroot", "--pull-never", "--format=docker"),
        *("--target", target, "--tag", image, "--file", ROOT / "Dockerfile", ROOT),
        timeout=1500,
    )
    return image


def size_bytes(engine: Engine, image: str) -> int:
    return int(engine.podman("image", "inspect", "--format={{.Size}}", image))


def _known(engine: Engine, image: str) -> bool:
    return engine.run("buildah", "images", "--quiet", image, check=False) != ""


def _mirror(engine: Engine) -> str:
    """Where this machine gets Debian from."""
    sites = engine.run("apt-get", "indextargets", "--format=$(SITE)", "Created-By: Packages").splitlines()
    return next(site for site in sites if "security" not in site)
