"""Queue of changes of the aliases: versions of `emuedit-editor-moves`, which MLflow numbers uniquely and without gaps.

The tags of a version contain the move, its reason, its process and its state. See `alias_moves` for their use.
"""

import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from emuedit.process_identity import pid_space, start_mark, user_at_host
from emuedit.tracking.mlflow_client import client
from emuedit.tracking.registry import MODEL_NAME, ModelVersion

T = TypeVar("T")
Kind = Literal["promotion", "rollback", "challenger", "repair"]

MOVES_MODEL = f"{MODEL_NAME}-moves"
REPAIR, CHALLENGER = "repair", "challenger"
WAITING, MOVING, DONE, REFUSED, ABANDONED = "waiting", "moving", "done", "refused", "abandoned"
_OPEN = (WAITING, MOVING)
_STATE, _PROCESS = "state", "process"
_RELEASED = "released"
"""Value of `Move.process` of a move that its process has given up."""
_SOURCE = f"{MOVES_MODEL}:/"
"""Scheme of the source of a ticket. MLflow resolves `models:/...`, and so refuses it for a deleted version."""
_TRIES = 20
_CLOCKS_MS = 10_000
"""Allowed difference of the clocks of two machines that open MLflow's database themselves."""
_PAGE = 1000
_CONFLICT = re.compile(
    r"database (table |schema )?is locked"  # SQLite
    r"|deadlock detected|could not serialize access|lock timeout|too many clients|remaining connection slots"  # PostgreSQL
    r"|unique constraint|Giving up after"  # another process took the same number, or wrote the same row first
    r"|too many (429|500|503) error responses",  # any of these, or a limit of the rate of requests, on a server
    re.IGNORECASE,
)
"""Texts of errors after which the database has changed nothing, so the same call may succeed later."""


@dataclass(frozen=True)
class Move:
    """One move of the champion alias, as in the history."""

    number: int
    state: str
    """waiting, moving, done, refused (the champion had changed) or abandoned (its process died or failed before it began, or its
    version was deleted)."""
    kind: str
    """promotion or rollback of the champion; challenger for a new version; repair for a ticket that only completes moves of dead
    processes."""
    champion: int
    """The version that becomes champion, or challenger."""
    before: int | None
    """The champion before; None if there was none, or if the move has not begun. The version may be deleted by now."""
    reason: str
    is_forced: bool
    """Whether a person overruled the gate."""
    requested_by: str
    """user@host."""
    time_ms: int
    """Time of the request, in ms since 1970: by the server's clock, or that of the requesting machine if it opens MLflow's
    database itself."""
    updated_ms: int
    """Its last heartbeat, by the same clock. Only a change of it tells something: clocks of machines differ."""
    process: str = ""
    """Its process: `<id>:<mark of its start>`, or `released` if that process has given the move up."""
    pid_space: str = ""
    """Where that process id is valid, see `process_identity.pid_space`."""
    request: str = ""
    """32 hex digits; equal for tickets that MLflow created for one request, because its answer was lost and it was sent again."""

    @property
    def is_released(self) -> bool:
        """Whether its process has given it up, so that others may complete it at once."""
        return self.process == _RELEASED

    @property
    def is_of_champion(self) -> bool:
        """Whether it moves the champion, and so belongs to the history."""
        return self.kind not in (REPAIR, CHALLENGER)

    def is_to(self, version: ModelVersion) -> bool:
        """Whether it is to this version, and not to a deleted one of the same number.

        The numbers start at 1 again if the registered model is deleted in MLflow and made anew; the history stays.
        """
        return self.champion == version.number and self.time_ms >= version.created_ms - _CLOCKS_MS

    @property
    def is_open(self) -> bool:
        """Whether its state is waiting or moving."""
        return self.state in _OPEN

    @property
    def has_known_process(self) -> bool:
        """Whether its process can be checked from here: only with the same kernel and PID namespace."""
        return bool(self.process and self.pid_space) and self.pid_space == pid_space() and not self.is_released

    @property
    def has_living_process(self) -> bool:
        """Whether its process is alive; valid only if `has_known_process`."""
        pid, _, mark = self.process.partition(":")
        return bool(mark) and start_mark(int(pid)) == mark


def new_request() -> str:
    """A value for `Move.request`."""
    return uuid.uuid4().hex


def draw(version: int, reason: str, kind: Kind, is_forced: bool = False, request: str = "") -> int:
    """Create a ticket in the state waiting; returns its number. request: empty for a new one."""
    _create_model()
    tags = {
        _STATE: WAITING, "kind": kind, "champion": str(version), "reason": reason[:5000], "forced": str(is_forced).lower(),
        "requested_by": user_at_host(), _PROCESS: f"{os.getpid()}:{start_mark(os.getpid())}", "pid_space": pid_space(),
        "request": request or new_request(),
    }  # fmt: skip
    source = f"{_SOURCE}{version}"
    return int(retry(lambda: client().create_model_version(MOVES_MODEL, source, tags=tags, await_creation_for=0)).version)


def read(ticket: int) -> Move:
    """The current state of a ticket."""
    return _to_move(retry(lambda: client().get_model_version(MOVES_MODEL, str(ticket))))


def read_all() -> Iterator[Move]:
    """All tickets, the lowest first."""
    token: str | None = None

    def search() -> Any:
        query = f"name = '{MOVES_MODEL}'"
        return client().search_model_versions(query, _PAGE, ["version_number ASC"], page_token=token)

    while True:
        page = retry(search)
        yield from map(_to_move, page)
        token = page.token
        if not token:
            return


def open_before(ticket: int) -> list[Move]:
    """The open tickets with lower numbers, the lowest first."""
    return sorted((move for move in read_all() if move.is_open and move.number < ticket), key=lambda move: move.number)


def renew(ticket: int) -> None:
    """Send a heartbeat, which changes `Move.updated_ms`."""
    retry(lambda: client().update_model_version(MOVES_MODEL, str(ticket), description=""))


def begin(ticket: int, before: int | None) -> None:
    """Record the start of the move and the champion before it."""
    _set_tags(ticket, {"before": str(before or ""), _STATE: MOVING})


def close(ticket: int, state: str) -> None:
    """Record the final state of the move."""
    _set_tags(ticket, {_STATE: state})


def release(ticket: int) -> None:
    """Record that its process has given up a move that has begun, so that others complete it at once."""
    _set_tags(ticket, {_PROCESS: _RELEASED})


def give_up(request: str) -> str:
    """Close or release the open tickets of a request, so that others need not wait for the end of this process.

    Returns what became of its move: done, moving (the next process completes it) or abandoned (it did not begin).
    """
    states = {ABANDONED}
    for move in [move for move in read_all() if move.request == request]:
        if move.state == WAITING:
            close(move.number, ABANDONED)
        elif move.state == MOVING:
            release(move.number)
        states.add(move.state)
    return next((state for state in (DONE, MOVING) if state in states), ABANDONED)


def retry(call: Callable[[], T]) -> T:
    """Retry while the database is locked or another process writes the same rows, for at most two minutes."""
    from mlflow.exceptions import MlflowException

    for attempt in range(_TRIES - 1):
        try:
            return call()
        except MlflowException as error:
            if not is_conflict(error):
                raise
        time.sleep(min(0.05 * 2**attempt, 10.0) * random.uniform(0.5, 1.5))
    return call()


def is_conflict(error: Exception) -> bool:
    """Whether an error of MLflow is a conflict with another process, see `_CONFLICT`."""
    codes = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "BAD_REQUEST")
    return getattr(error, "error_code", "") in codes and _CONFLICT.search(str(error)) is not None


def _create_model() -> None:
    from mlflow.exceptions import MlflowException

    mlflow = client()
    text = "History of the aliases of emuedit-editor: one version per promotion or rollback. See `emuedit models --moves`."
    try:
        retry(lambda: mlflow.get_registered_model(MOVES_MODEL))
    except MlflowException:
        try:
            retry(lambda: mlflow.create_registered_model(MOVES_MODEL, description=text))
        except MlflowException as error:  # another process was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _set_tags(ticket: int, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        retry(partial(client().set_model_version_tag, MOVES_MODEL, str(ticket), key, value))


def _to_move(version: Any) -> Move:
    tags = version.tags
    return Move(
        int(version.version), tags.get(_STATE, ABANDONED), tags.get("kind", ""), int(tags.get("champion", 0)),
        int(tags["before"]) if tags.get("before") else None, tags.get("reason", ""), tags.get("forced") == "true",
        tags.get("requested_by", ""), int(version.creation_timestamp), int(version.last_updated_timestamp),
        tags.get(_PROCESS, ""), tags.get("pid_space", ""), tags.get("request", ""),
    )  # fmt: skip
