"""A process that has imported MLflow and is forked for each move that a test has killed: the imports take five seconds of a core.

It never opens a database, since a connection must not be used by a fork.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any, Literal

NAMES = (
    "mlflow.tracking", "emuedit.tracking.alias_moves",
    "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store", "alembic.command",
)  # fmt: skip
"""Modules that a move imports, the last three with the first use of a database."""
Place = Literal["queue", "before the aliases", "between the aliases"]
"""Where in a move its process is killed."""


def serve() -> None:
    """For each line of the input, a JSON object with the arguments of `_move`, print the exit status of a fork that does it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to the errors
    for name in NAMES:
        importlib.import_module(name)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            try:
                _move(**json.loads(line))
            except BaseException:
                traceback.print_exc()
            os._exit(1)  # it should have been killed
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _move(folder: str, environment: dict[str, str], place: Place, function: str, arguments: dict[str, Any]) -> None:
    """Call a function of `alias_moves` that moves aliases, in a working folder, and be killed at a place of it."""
    from mlflow.tracking import MlflowClient

    from emuedit.tracking import alias_moves

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def set_alias_or_die(client: MlflowClient, name: str, alias: str, version: str) -> None:
        die() if alias == "champion" else set_alias(client, name, alias, version)

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    set_alias = MlflowClient.set_registered_model_alias
    changes: dict[Place, tuple[Any, str, Any]] = {
        "queue": (alias_moves, "_wait_for_turn", die),
        "before the aliases": (alias_moves, "_write_aliases", die),
        "between the aliases": (MlflowClient, "set_registered_model_alias", set_alias_or_die),
    }
    setattr(*changes[place])
    getattr(alias_moves, function)(**arguments)
