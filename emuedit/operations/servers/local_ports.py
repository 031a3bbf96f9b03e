"""Ports of the servers of one data folder: chosen among free ports, then remembered, so that addresses are stable."""

import json
import socket
from collections.abc import Collection, Sequence
from pathlib import Path

from emuedit.data.atomic_file import replacing

HOST = "127.0.0.1"
SERVER_HOSTS = ("localhost", HOST)
"""Names by which clients here reach the servers."""
_MAX_TRIES = 200
_FILE = "ports.json"


class PortError(RuntimeError):
    """Raised if no port is free."""


def is_free(port: int) -> bool:
    """Whether a port of this machine is free."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a recently closed port is free
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


def read_ports(folder: Path) -> dict[str, int]:
    """The remembered ports by name; empty if none were chosen yet."""
    path = folder / _FILE
    ports: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return ports


def choose_ports(folder: Path, names: Sequence[str], base: int, running: Collection[str] = ()) -> dict[str, int]:
    """A port for each name: the remembered one if it is free or its server is `running`, else the next free one from `base`.

    Raises PortError.
    """
    ports = {name: port for name, port in read_ports(folder).items() if name in running or is_free(port)}
    for name in names:
        if name not in ports:
            free = (port for port in range(base, base + _MAX_TRIES) if port not in ports.values() and is_free(port))
            port = next(free, None)
            if port is None:
                raise PortError(f"want a free port from {base} to {base + _MAX_TRIES - 1}, got none; choose another --port-base")
            ports[name] = port
    with replacing(folder / _FILE) as partial:  # a file that was cut would stop every later start
        partial.write_text(json.dumps(ports, indent=1) + "\n", encoding="utf-8")
    return ports
