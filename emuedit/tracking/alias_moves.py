"""Moves of the aliases `champion` and `previous`, one after the other, whoever asks for them and on whatever machine.

MLflow can set an alias, but not only if it still has the value that was read. It does number the versions of a model without
gaps or twins: in SQLite, in PostgreSQL and through a server. So every move is a version of the model `emuedit-editor-moves`,
and its number is a ticket (Lamport's bakery algorithm, Commun. ACM 17(8), 1974): a move waits until all lower numbers are
closed. The tags of the version say what is moved and why, so the same model is the history of promotions.

A move writes what it is going to do before it does it. If its process is killed half-way, the next move finishes it.
"""

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from emuedit.process_identity import start_mark, user_at_host
from emuedit.tracking.registry import MODEL_NAME, SCHEME, ModelVersion, RegistryError, version_at
from emuedit.tracking.runs import client

T = TypeVar("T")
Kind = Literal["promotion", "rollback"]

MOVES_MODEL = f"{MODEL_NAME}-moves"
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
_STATE = "state"
_WAITING, _MOVING, _DONE, _REFUSED, _ABANDONED = "waiting", "moving", "done", "refused", "abandoned"
_OPEN = (_WAITING, _MOVING)
_REFRESH_S = 5.0
"""Seconds between two signs of life of a waiting move."""
_DEAD_AFTER_S = 60.0
"""A move without a sign of life for so long, by the server's clock, belongs to a process that is gone."""
_POLL_S = 0.2
_TRIES = 20
_PAGE = 1000


class ChampionChangedError(RegistryError):
    """Raised when the champion is another than the one that a decision was made about."""


@dataclass(frozen=True)
class Move:
    """One move of the champion alias, as the history has it."""

    number: int
    state: str
    """waiting, moving, done, refused (the champion had changed) or abandoned (its process died before it began)."""
    kind: str
    """promotion or rollback."""
    champion: int
    """The version that becomes champion."""
    before: int | None
    """The champion before; None when there was none, or when the move has not begun."""
    reason: str
    is_forced: bool
    """Whether a person overruled the gate."""
    requested_by: str
    """user@host."""
    time_ms: int
    """When it was asked for, in ms since 1970 by the server's clock."""
    updated_ms: int
    """Its last sign of life."""


def move_champion(
    version: int, reason: str, kind: Kind = "promotion", expected: int | None = None, is_forced: bool = False, check: bool = True
) -> Move:
    """Make a version the champion, and the champion so far `previous`. Waits for moves that were asked for earlier.

    expected: the champion that the decision was made about (None: there was none). With `check`, another one raises
    ChampionChangedError, and nothing is moved. Raises RegistryError for a version that does not exist.
    """
    ticket = _draw_ticket(version, reason, kind, is_forced)
    try:
        _wait_for_turn(ticket)
        champion = version_at(CHAMPION)
        before = champion.number if champion else None
        if check and before != expected:
            _close(ticket, _REFUSED)
            raise ChampionChangedError(
                f"want version {expected or 'none'} as champion, as when {version} was compared with it, got {before or 'none'}; "
                "compare again"
            )
        _set_tags(ticket, {"before": str(before or ""), _STATE: _MOVING})
        _write_aliases(version, before)
        _close(ticket, _DONE)
    except BaseException:
        with contextlib.suppress(Exception):  # the error itself matters more; an open move is finished by the next one
            if _state_of(ticket) == _WAITING:
                _close(ticket, _ABANDONED)
        raise
    return next(move for move in history() if move.number == ticket)


def history() -> list[Move]:
    """All moves, the oldest first. Empty when nothing was ever moved."""
    return sorted((_to_move(version) for version in _versions()), key=lambda move: move.number)


def repair() -> list[Move]:
    """Finish the moves whose processes died half-way, and close those that never began. Returns what was repaired."""
    moves = history()
    if not any(move.state in _OPEN for move in moves):
        return []
    now_ms = _server_time(moves[-1].number)
    dead = [move for move in moves[:-1] if _is_dead(move, now_ms)]
    if moves[-1].state in _OPEN and not _belongs_to_living_process(moves[-1]):
        dead.append(moves[-1])
    for move in dead:
        _finish_dead(move)
    return dead


def _draw_ticket(version: int, reason: str, kind: Kind, is_forced: bool) -> int:
    from mlflow.exceptions import MlflowException

    mlflow = client()
    try:
        mlflow.get_model_version(MODEL_NAME, str(version))
    except MlflowException as error:
        raise RegistryError(f"want a version of {MODEL_NAME}, got {version} ({error.message}); see `emuedit models`") from error
    _create_moves_model()
    tags = {
        _STATE: _WAITING, "kind": kind, "champion": str(version), "reason": reason[:5000], "forced": str(is_forced).lower(),
        "requested_by": user_at_host(), "process": f"{os.getpid()}:{start_mark(os.getpid())}",
    }  # fmt: skip
    source = f"{SCHEME}{MODEL_NAME}/{version}"
    return int(_retry(lambda: mlflow.create_model_version(MOVES_MODEL, source, tags=tags, await_creation_for=0)).version)


def _create_moves_model() -> None:
    from mlflow.exceptions import MlflowException

    mlflow = client()
    text = "History of the champion of emuedit-editor: one version per promotion or rollback. See `emuedit models --moves`."
    try:
        mlflow.get_registered_model(MOVES_MODEL)
    except MlflowException:
        try:
            mlflow.create_registered_model(MOVES_MODEL, description=text)
        except MlflowException as error:  # another process was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _wait_for_turn(ticket: int) -> None:
    """Return when every lower ticket is closed; those of dead processes are finished on the way."""
    last_sign = time.monotonic()
    now_ms = _server_time(ticket)
    while True:
        ahead = [move for move in _open_moves() if move.number < ticket]
        for move in ahead:
            if _is_dead(move, now_ms):
                _finish_dead(move)
        if not ahead:
            return
        time.sleep(_POLL_S * random.uniform(0.5, 1.5))
        if time.monotonic() - last_sign > _REFRESH_S:
            last_sign, now_ms = time.monotonic(), _server_time(ticket)


def _is_dead(move: Move, now_ms: int) -> bool:
    if move.state not in _OPEN:
        return False
    if move.requested_by.endswith(f"@{socket.gethostname()}"):
        return not _belongs_to_living_process(move)
    return now_ms - move.updated_ms > _DEAD_AFTER_S * 1000


def _finish_dead(move: Move) -> None:
    """Do again what a dead process had begun; the same aliases twice do no harm."""
    if move.state == _MOVING:
        _write_aliases(move.champion, move.before)
    _close(move.number, _DONE if move.state == _MOVING else _ABANDONED)


def _write_aliases(version: int, before: int | None) -> None:
    """`previous` first: stopped between the two, no version is lost sight of."""
    mlflow = client()
    if before is not None and before != version:
        _retry(lambda: mlflow.set_registered_model_alias(MODEL_NAME, PREVIOUS, str(before)))
    _retry(lambda: mlflow.set_registered_model_alias(MODEL_NAME, CHAMPION, str(version)))


def _close(ticket: int, state: str) -> None:
    _set_tags(ticket, {_STATE: state})


def _set_tags(ticket: int, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        _retry(partial(client().set_model_version_tag, MOVES_MODEL, str(ticket), key, value))


def _state_of(ticket: int) -> str:
    return _to_move(_retry(lambda: client().get_model_version(MOVES_MODEL, str(ticket)))).state


def _server_time(ticket: int) -> int:
    """Give a sign of life and return the time, in ms since 1970, by the clock of whoever keeps the registry."""
    updated = _retry(lambda: client().update_model_version(MOVES_MODEL, str(ticket), description=""))
    return int(updated.last_updated_timestamp)


def _open_moves() -> Iterator[Move]:
    return (move for move in map(_to_move, _versions()) if move.state in _OPEN)


def _versions() -> Iterator[Any]:
    token: str | None = None

    def search() -> Any:
        query = f"name = '{MOVES_MODEL}'"
        return client().search_model_versions(query, _PAGE, ["version_number ASC"], page_token=token)

    while True:
        page = _retry(search)
        yield from page
        token = page.token
        if not token:
            return


def _to_move(version: Any) -> Move:
    tags = version.tags
    return Move(
        int(version.version), tags.get(_STATE, _ABANDONED), tags.get("kind", ""), int(tags.get("champion", 0)),
        int(tags["before"]) if tags.get("before") else None, tags.get("reason", ""), tags.get("forced") == "true",
        tags.get("requested_by", ""), int(version.creation_timestamp), int(version.last_updated_timestamp),
    )  # fmt: skip


def _belongs_to_living_process(move: Move) -> bool:
    """Whether the process of a move of this machine lives: its id and the mark of its start."""
    pid, _, mark = client().get_model_version(MOVES_MODEL, str(move.number)).tags.get("process", "").partition(":")
    return bool(mark) and start_mark(int(pid)) == mark


def _retry(call: Callable[[], T]) -> T:
    """Call again while the database is locked or another process took the same number, two minutes at most."""
    from mlflow.exceptions import MlflowException

    for attempt in range(_TRIES):
        try:
            return call()
        except MlflowException as error:
            is_passing = error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "BAD_REQUEST") and (
                "locked" in str(error) or "Giving up" in str(error) or "serialize" in str(error)
            )
            if not is_passing or attempt == _TRIES - 1:
                raise
        time.sleep(min(0.05 * 2**attempt, 10.0) * random.uniform(0.5, 1.5))
    raise AssertionError("not reached")


def current() -> dict[str, ModelVersion | None]:
    """Alias -> version, for champion, challenger and previous."""
    return {alias: version_at(alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)}
