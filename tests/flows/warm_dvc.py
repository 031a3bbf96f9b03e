"""A process that has imported DVC and is forked for each command, because the import takes more than a second of a core.

As a program this is the client: `warm_dvc.py SOCKET WORDS` does what `dvc WORDS` does in this folder, with this environment and
these output streams, and exits with its status.
"""

import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

MODULES = ("dvc.cachemgr", "dvc.cli.parser", "dvc.data_cloud", "dvc.lock", "dvc.repo.reproduce", "scmrepo.git")
STREAMS = (1, 2)


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(path))
    server.listen()
    return server


def serve(descriptor: int) -> NoReturn:
    """Answer the clients of a socket from `listen`."""
    for name in MODULES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(fileno=descriptor) as server:
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _run(client)
            client.close()


def _run(client: socket.socket) -> NoReturn:
    from dvc.cli import main

    request, streams, _, _ = socket.recv_fds(client, 2**17, len(STREAMS))
    folder, environment, words = json.loads(request)
    for stream, number in zip(streams, STREAMS, strict=True):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    client.send(bytes([status]))
    os._exit(status)


def client_command(path: Path, arguments: Sequence[str], timeout_s: float | None = None) -> list[str]:
    """The command line of a client in place of that of `process_guard.command`, without a guard and a time limit."""
    assert arguments[1:3] == ["-m", "dvc"]
    return [sys.executable, "-S", "-E", __file__, str(path), *arguments[3:]]


if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(sys.argv[1])
        socket.send_fds(server, [json.dumps([str(Path.cwd()), dict(os.environ), sys.argv[2:]]).encode()], STREAMS)
        sys.exit((server.recv(1) or b"\1")[0])
