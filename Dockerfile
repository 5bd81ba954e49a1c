# Three images from one file: `api` (API, dispatcher, migrations; no torch), `worker` (supervisors, inference; CUDA 13)
# and `worker-cpu` (the same without CUDA).
# None of them holds uv, pip or a compiler: the installer is only mounted while it works, and each environment is one layer.
# There is no HEALTHCHECK: one image runs several processes, and Compose has a check for each.
# Everything was tested with Python 3.11.
ARG PYTHON_IMAGE=python:3.11.16-slim-trixie

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS installer
COPY requirements/uv.txt /opt/uv.txt
RUN python3 -m venv /opt/uv \
 && /opt/uv/bin/python -m pip install --quiet --no-cache-dir --require-hashes -r /opt/uv.txt

# PyPI has no torchvision without CUDA, so our locks cannot have the hashes of torch and torchvision without it. They are
# read from PyTorch's own index when the image is built; nothing else comes from there.
FROM installer AS cpu-lock
RUN --mount=type=bind,source=requirements,target=/requirements \
    grep -oE '^(torch|torchvision)==[0-9.]+' /requirements/worker.txt > /opt/torch.in \
 && UV_PYTHON_DOWNLOADS=never /opt/uv/bin/uv pip compile --quiet --no-deps --generate-hashes --torch-backend cpu \
      /opt/torch.in --output-file /opt/torch.txt

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS source
WORKDIR /srv/denll
COPY app app
COPY migrations migrations
COPY ml ml
COPY worker worker
COPY pyproject.toml pyproject.toml
RUN python3 -m compileall -q .

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS base
# The root is read-only at run time: files that a library writes go to the temporary file system.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DENLL_DATA_DIR=/data
# /data belongs to the user, so that a new volume mounted there does too.
RUN groupadd --gid 10001 denll \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin denll \
 && install --directory --owner=denll --group=denll --mode=0700 /data \
 && python3 -m venv --without-pip /opt/venv \
 && rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/site-packages/pip*
WORKDIR /srv/denll

FROM base AS api
RUN --mount=type=bind,from=installer,source=/opt/uv,target=/opt/uv \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/var/cache/uv \
    UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never /opt/uv/bin/uv pip sync \
      --quiet --require-hashes --compile-bytecode --python /opt/venv/bin/python /requirements/api.txt
COPY --from=source /srv/denll/app app
COPY --from=source /srv/denll/migrations migrations
COPY --from=source /srv/denll/ml/__init__.py ml/__init__.py
COPY --from=source /srv/denll/ml/formats ml/formats
COPY --from=source /srv/denll/worker worker
COPY --from=source /srv/denll/pyproject.toml pyproject.toml
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "app.main"]

FROM base AS worker
# Threads that spin while they wait take the cores from other processes. Only the driver's compute libraries are mounted; a
# driver too old for CUDA 13 is refused when the container starts, not when the first job does.
ENV OMP_WAIT_POLICY=PASSIVE \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA=cuda>=13.0
RUN --mount=type=bind,from=installer,source=/opt/uv,target=/opt/uv \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/var/cache/uv \
    UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never /opt/uv/bin/uv pip sync \
      --quiet --require-hashes --compile-bytecode --python /opt/venv/bin/python /requirements/worker.txt
COPY --from=source /srv/denll/app app
COPY --from=source /srv/denll/ml ml
COPY --from=source /srv/denll/worker worker
USER 10001:10001
CMD ["python", "-m", "worker.supervisor", "-Q", "jobs"]

FROM base AS worker-cpu
ENV OMP_WAIT_POLICY=PASSIVE
RUN --mount=type=bind,from=installer,source=/opt/uv,target=/opt/uv \
    --mount=type=bind,from=cpu-lock,source=/opt/torch.txt,target=/opt/torch.txt \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/var/cache/uv \
    export UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never \
 && /opt/uv/bin/uv pip sync --quiet --require-hashes --compile-bytecode --python /opt/venv/bin/python \
      /requirements/worker-cpu.txt \
 && /opt/uv/bin/uv pip install --quiet --require-hashes --compile-bytecode --python /opt/venv/bin/python \
      --no-deps --torch-backend cpu --requirements /opt/torch.txt
COPY --from=source /srv/denll/app app
COPY --from=source /srv/denll/ml ml
COPY --from=source /srv/denll/worker worker
USER 10001:10001
CMD ["python", "-m", "worker.supervisor", "-Q", "jobs"]
