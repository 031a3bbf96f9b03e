"""Serve a registered model so that a roll-out interrupts no request: python -m emuedit.tracking.serve_model.

`mlflow models serve` starts the server as its child and exits at SIGTERM immediately: in a container, this kills the child and
its requests. Here the model is downloaded once, and this process becomes the server, so SIGTERM reaches it: it accepts no new
connections, answers the open requests, and exits. The champion is resolved once, at the start.
"""

import argparse
import errno
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from emuedit.tracking import model_cache, registry
from emuedit.tracking.mlflow_client import fluent_api
from emuedit.tracking.registry import MODEL_NAME, RUNS_SCHEME, SCHEME
from emuedit.tracking.store_address import TRACKING_URI_ENV, is_server_stopped

REQUEST_S = 300
"""Default time limit for an answer, in seconds. The server waits 10 s longer before it exits."""
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # such as ::1 of localhost without IPv6
_APP = "flows.serving_app:app"


def main(arguments: Sequence[str] | None = None) -> None:
    """Does not return: the process becomes the server. Raises SystemExit if another program listens at the port."""
    options = _parser().parse_args(arguments)
    _check_port(options.host, options.port)
    if not os.environ.get(TRACKING_URI_ENV) and is_server_stopped(Path()) and options.model_uri.startswith((SCHEME, RUNS_SCHEME)):
        raise SystemExit(
            "serve_model: want the MLflow of `emuedit up` in this folder, got its servers stopped; start them with "
            f"`uv run emuedit up`, or set {TRACKING_URI_ENV}"
        )
    from mlflow.pyfunc import scoring_server

    mlflow = fluent_api()
    if options.model_uri.startswith((SCHEME, RUNS_SCHEME)):
        model = registry.download_model(options.model_uri)
        model_cache.keep(model)  # the server also imports code and reads files after its start
    else:
        model = Path(mlflow.artifacts.download_artifacts(artifact_uri=options.model_uri))
    _, environment = scoring_server.get_cmd(str(model), options.port, options.host, options.timeout)
    command = [
        sys.executable, "-m", "uvicorn", "--host", options.host, "--port", str(options.port),
        "--timeout-graceful-shutdown", str(options.timeout + 10), _APP,
    ]  # fmt: skip
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)  # noqa: S606 - fixed words


def _check_port(host: str, port: int) -> None:
    """Raises SystemExit if the server could not listen at the port: before a long download."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            _bind(family, kind, protocol, address)
    except OSError as error:
        raise SystemExit(
            f"serve_model: want a port at which this program can listen, got {port} of {host}: {error.strerror}; "
            "stop the program that uses it, or choose another --port"
        ) from error


def _bind(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> None:
    """Bind a socket for a moment. Raises OSError, but not for an address that this machine does not have."""
    try:
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a recently closed port is free
            listener.bind(address)
    except OSError as error:
        if error.errno not in _NO_SUCH_ADDRESS:
            raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve_model", description="Serve a model; at SIGTERM, answer the open requests and exit.", allow_abbrev=False
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
