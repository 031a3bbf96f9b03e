"""Serve a registered model so that a roll-out interrupts no request: python -m emuedit.tracking.serve_model.

`mlflow models serve` starts the server as its child and exits at SIGTERM immediately: in a container, this kills the child and
its requests. Here the model is downloaded, and this process becomes the server, so SIGTERM reaches it: it accepts no new
connections, answers the open requests, and exits. The champion is resolved once, at the start.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emuedit.tracking import model_cache, registry
from emuedit.tracking.registry import MODEL_NAME, RUNS_SCHEME, SCHEME
from emuedit.tracking.store_address import tracking_uri

REQUEST_S = 300
"""Default time limit for an answer, in seconds. The server waits 10 s longer before it exits."""
_APP = "flows.serving_app:app"


def main(arguments: Sequence[str] | None = None) -> None:
    """Does not return: the process becomes the server."""
    options = _parser().parse_args(arguments)
    import mlflow
    from mlflow.pyfunc import scoring_server

    mlflow.set_tracking_uri(tracking_uri())
    folder = _make_folder(options.port)
    if options.model_uri.startswith((SCHEME, RUNS_SCHEME)):
        folder = registry.download_model(options.model_uri, folder)
    else:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=options.model_uri, dst_path=str(folder)))
    _, environment = scoring_server.get_cmd(str(folder), options.port, options.host, options.timeout)
    command = [
        sys.executable, "-m", "uvicorn", "--host", options.host, "--port", str(options.port),
        "--timeout-graceful-shutdown", str(options.timeout + 10), _APP,
    ]  # fmt: skip
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)  # noqa: S606 - fixed words


def _make_folder(port: int) -> Path:
    """An empty folder for the model of the server at this port; replaces the folder of an earlier start."""
    cache = model_cache.folder()
    if cache is None:
        return Path(tempfile.mkdtemp(prefix="emuedit-served-"))
    folder = cache.parent / f"served-{port}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve_model", description="Serve a model; at SIGTERM, answer the open requests and exit."
    )
    champion = f"{SCHEME}{MODEL_NAME}@champion"
    parser.add_argument("--model-uri", default=champion, metavar="URI", help=f"default: {champion}")
    parser.add_argument("--host", default="0.0.0.0", help="default: all addresses of this machine or container")  # noqa: S104
    port = int(os.environ.get("SERVE_PORT") or 8080)
    parser.add_argument("--port", type=int, default=port, help="default: SERVE_PORT, or 8080")
    timeout = f"time limit of a request in seconds; default: {REQUEST_S}"
    parser.add_argument("--timeout", type=int, default=REQUEST_S, metavar="S", help=timeout)
    return parser


if __name__ == "__main__":
    main()
