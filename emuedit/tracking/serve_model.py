"""Serve a registered model so that a roll-out interrupts no request: python -m emuedit.tracking.serve_model.

`mlflow models serve` starts the server as its child and exits at SIGTERM immediately: in a container, this kills the child and
its requests. Here the model is downloaded, and this process becomes the server, so SIGTERM reaches it: it accepts no new
connections, answers the open requests, and exits. The champion is resolved once, at the start.
"""

import argparse
import errno
import fcntl
import itertools
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emuedit.tracking import model_cache, registry
from emuedit.tracking.registry import MODEL_NAME, RUNS_SCHEME, SCHEME
from emuedit.tracking.store_address import tracking_uri

REQUEST_S = 300
"""Default time limit for an answer, in seconds. The server waits 10 s longer before it exits."""
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # such as ::1 of localhost without IPv6
_APP = "flows.serving_app:app"


def main(arguments: Sequence[str] | None = None) -> None:
    """Does not return: the process becomes the server. Raises SystemExit if another program listens at the port."""
    options = _parser().parse_args(arguments)
    _check_port(options.host, options.port)
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


def _check_port(host: str, port: int) -> None:
    """Raises SystemExit if the server could not listen at the port: before a long download, and before a folder is emptied."""
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


def _make_folder(port: int) -> Path:
    """An empty folder for the model of the server at this port; replaces the folder of an earlier start, if that has ended.

    A server locks its folder until it exits: it also reads the model after its start, and answers open requests after it has
    closed its port. Until then, or if it runs in another container, the folder of the next start has the suffix -2, -3, ...
    """
    cache = model_cache.folder()
    if cache is None:
        return Path(tempfile.mkdtemp(prefix="emuedit-served-"))
    cache.parent.mkdir(parents=True, exist_ok=True)
    names = (f"served-{port}" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    folder = cache.parent / next(name for name in names if _lock(cache.parent / f"{name}.lock"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    return folder


def _lock(path: Path) -> bool:
    """Lock a file until this process exits, also over `os.execve`; False if another process holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    os.set_inheritable(descriptor, True)
    return True


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
