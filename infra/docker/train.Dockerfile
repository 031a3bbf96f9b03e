# Training and flows on NVIDIA GPUs, from uv.lock: docker build -f infra/docker/train.Dockerfile -t emuedit-train:0.1.0 .
# The wheels of torch bring CUDA; of the host it needs the driver and nvidia-container-toolkit (docker run --gpus all).
ARG PYTHON_VERSION=3.11.15

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ARG UV_VERSION=0.13.9
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/emuedit
RUN pip install --no-cache-dir "uv==${UV_VERSION}"
WORKDIR /src
# The packages before the code: a change of the code does not install them again.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --locked --no-dev --no-install-project --extra servers --extra ray --no-cache
COPY . .
RUN uv sync --locked --no-dev --no-editable --extra servers --extra ray --no-cache

FROM python:${PYTHON_VERSION}-slim-bookworm
# git: runs name their commit. gcc and libc6-dev: triton compiles kernels. tini: a worker's processes are collected.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 emuedit \
    && useradd --uid 10001 --gid emuedit --create-home emuedit \
    && mkdir /workspace && chown emuedit:emuedit /workspace \
    && mkdir -p /cache/tmp && chmod 1777 /cache /cache/tmp
COPY --from=build /opt/emuedit /opt/emuedit
COPY --chmod=755 infra/docker/read-secrets /usr/local/bin/read-secrets
COPY --chown=emuedit:emuedit . /workspace
# A clone mounted at /workspace brings its own code (PYTHONPATH), and belongs to another user (safe.directory).
ENV PATH=/opt/emuedit/bin:$PATH \
    PYTHONPATH=/workspace \
    PYTHONUNBUFFERED=1 \
    GIT_CONFIG_COUNT=1 \
    GIT_CONFIG_KEY_0=safe.directory \
    GIT_CONFIG_VALUE_0=/workspace \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    DVC_SITE_CACHE_DIR=/tmp/dvc \
    PREFECT_HOME=/tmp/prefect \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /workspace
# A retrain is healthy if it exits with 0; a service of this image has a check of its own (infra/compose.yaml).
HEALTHCHECK NONE
ENTRYPOINT ["tini", "--", "read-secrets"]
CMD ["retrain"]
