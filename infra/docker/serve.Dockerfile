# MLflow, Prefect and the champion, from uv.lock: docker build -f infra/docker/serve.Dockerfile -t emuedit-serve:0.1.0 .
# On a GPU: --build-arg TORCH_BACKEND=cuda. With cpu the versions are those of uv.lock too, but torch comes without CUDA, which is
# 4 GB less. `--no-deps`: the list is complete but for torch, which others depend on and which has no hash in it.
ARG PYTHON_VERSION=3.11.15

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ARG UV_VERSION=0.13.9
ARG TORCH_BACKEND=cpu
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/emuedit
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN pip install --no-cache-dir "uv==${UV_VERSION}"
WORKDIR /src
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN case "$TORCH_BACKEND" in \
      cuda) uv sync --locked --no-dev --no-install-project --extra servers --no-cache ;; \
      cpu) export_lock=(uv export --locked --no-dev --no-emit-project --extra servers) \
        && uv venv /opt/emuedit \
        && "${export_lock[@]}" --prune torch --prune torchvision --output-file /tmp/packages.txt \
        && "${export_lock[@]}" --no-hashes --output-file /tmp/versions.txt \
        && sed -nE 's/^(torch|torchvision)==([^ ;]*).*/\1==\2/p' /tmp/versions.txt > /tmp/torch.txt \
        && uv pip install --python /opt/emuedit --no-cache --require-hashes --no-deps -r /tmp/packages.txt \
        && uv pip install --python /opt/emuedit --no-cache --torch-backend cpu --constraints /tmp/versions.txt -r /tmp/torch.txt ;; \
      *) echo "want TORCH_BACKEND cpu or cuda, got $TORCH_BACKEND" >&2; exit 2 ;; \
    esac
COPY . .
RUN uv pip install --python /opt/emuedit --no-cache --no-deps .

FROM python:${PYTHON_VERSION}-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 emuedit \
    && useradd --uid 10001 --gid emuedit --create-home emuedit \
    && mkdir -p /workspace /var/lib/mlflow && chown emuedit:emuedit /workspace /var/lib/mlflow \
    && mkdir -p /cache/tmp && chmod 1777 /cache /cache/tmp
COPY --from=build /opt/emuedit /opt/emuedit
COPY --chmod=755 infra/docker/read-secrets /usr/local/bin/read-secrets
COPY --chown=emuedit:emuedit . /workspace
ENV PATH=/opt/emuedit/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    DVC_SITE_CACHE_DIR=/tmp/dvc \
    PREFECT_HOME=/tmp/prefect \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    SERVE_PORT=8080
USER 10001:10001
WORKDIR /workspace
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["sh", "-c", "exec python -c \"import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['SERVE_PORT'] + '/ping')\""]
ENTRYPOINT ["tini", "--", "read-secrets"]
# The champion, at SERVE_PORT. Unlike `mlflow models serve`, it answers what was asked before SIGTERM.
CMD ["python", "-m", "emuedit.tracking.serve_model"]
