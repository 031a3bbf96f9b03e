"""A fork server that has imported the heavy libraries, from which tests start processes in milliseconds."""

from multiprocessing import forkserver

from emuedit.processes import prepare_workers

MODULES = ("emuedit.editor.edit_pipeline",)
"""What takes ten seconds of a core to import. Nothing here imports `emuedit.data.shards`, which `paused_stage` changes."""
_warm_servers: set[int] = set()  # ids of their processes; a list of modules in `forkserver` is that of the last call


def warm_up() -> None:
    """Have Python's fork server of this process import MODULES, unless it did; a server that did not import them is replaced."""
    server = forkserver._forkserver
    if server._forkserver_pid is not None and server._forkserver_pid not in _warm_servers:
        server._stop()
    prepare_workers("cpu", MODULES)
    _warm_servers.add(server._forkserver_pid)
