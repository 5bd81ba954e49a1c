# Two images from one file: `api` (desk: api, dispatcher, migrate; no torch) and `worker` (supervisors, inference).
# Neither holds uv, pip or a compiler. There is no HEALTHCHECK: one image runs several processes, and Compose knows which.
# 3.11 is the version that everything was tested with.
ARG PYTHON_IMAGE=python:3.11.16-slim-trixie

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS builder
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy
WORKDIR /build
COPY requirements/uv.txt requirements/
RUN python3 -m venv /opt/uv \
 && /opt/uv/bin/python -m pip install --quiet --no-cache-dir --require-hashes -r requirements/uv.txt \
 && python3 -m venv --without-pip /opt/venv

FROM builder AS api-environment
COPY requirements/api.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    /opt/uv/bin/uv pip sync --quiet --require-hashes --compile-bytecode --python /opt/venv/bin/python requirements/api.txt

FROM builder AS worker-environment
COPY requirements/worker.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    /opt/uv/bin/uv pip sync --quiet --require-hashes --compile-bytecode --python /opt/venv/bin/python requirements/worker.txt

FROM builder AS source
COPY app app
COPY worker worker
COPY migrations migrations
COPY ml ml
RUN /opt/venv/bin/python -m compileall -q app worker migrations ml

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS base
# Root is read-only at run time: what a library wants to keep goes to the temporary file system.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DENLL_DATA_DIR=/data
# /data belongs to the user, so that a new volume mounted there does too.
RUN groupadd --gid 10001 denll \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin denll \
 && install --directory --owner=denll --group=denll --mode=0750 /data \
 && rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/site-packages/pip*
WORKDIR /srv/denll

FROM base AS api
COPY --from=api-environment /opt/venv /opt/venv
COPY --from=source /build/app app
COPY --from=source /build/migrations migrations
COPY --from=source /build/worker worker
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "app.main"]

FROM base AS worker
# Threads that spin while they wait starve whoever shares the cores; a driver is asked for nothing but computing.
ENV OMP_WAIT_POLICY=PASSIVE \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=worker-environment /opt/venv /opt/venv
COPY --from=source /build/app app
COPY --from=source /build/worker worker
COPY --from=source /build/ml ml
USER 10001:10001
CMD ["python", "-m", "worker.celery_app", "-Q", "jobs"]
