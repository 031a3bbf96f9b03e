"""Serialised moves of the aliases `champion`, `previous` and `challenger`, for processes on any machine.

MLflow cannot set an alias only if it still has the value that was read (compare-and-swap). But it numbers the versions of a model
uniquely and without gaps: in SQLite, in PostgreSQL and through a server. So every move is a version of `emuedit-editor-moves`,
and its number is a ticket (Lamport's bakery algorithm, Commun. ACM 17(8), 1974): a move waits until all lower tickets are closed.
The tags of the version contain the move and its reason, so this model is also the history of promotions.

`challenger` is the newest version that is not the champion. A new version gets it by a ticket of its own, which is not part of
the history; a promotion or rollback removes it from the version that becomes champion.

A move records its intent first. If its process dies, only the lowest open ticket after it completes it, since a slower second
one could overwrite a later move.
"""

import contextlib
import random
import time

from emuedit.tracking import move_tickets
from emuedit.tracking.move_tickets import ABANDONED, DONE, MOVING, REFUSED, WAITING, Kind, Move
from emuedit.tracking.registry import MODEL_NAME, ModelVersion, RegistryError, version_at
from emuedit.tracking.runs import client

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
_REFRESH_S = 5.0
"""Seconds between two heartbeats of a waiting move."""
_DEAD_AFTER_S = 60.0
"""A move without a heartbeat for this time, by the server's clock, belongs to a dead process."""
_POLL_S = 0.2
"""Seconds between two polls, times the number of moves ahead, so that many waiting moves do not overload the registry."""


class ChampionChangedError(RegistryError):
    """Raised if the champion has changed, or may have changed, since the decision."""


def move_champion(
    version: int, reason: str, kind: Kind = "promotion", expected: int | None = None, is_forced: bool = False, check: bool = True
) -> Move:
    """Make a version the champion, and the current champion `previous`. Waits for moves that were requested earlier.

    expected: the champion at the decision (None: none). With `check`, another champion raises ChampionChangedError and nothing is
    moved; so does a ticket that another process closed because it counted as dead. Raises RegistryError for a version that does
    not exist.
    """
    return _move(version, reason, kind, expected, is_forced, check)


def set_challenger(version: int) -> None:
    """Make a version the challenger, unless a newer one is, or it is the champion. Waits for moves that were requested earlier.

    Raises the errors of `move_champion`.
    """
    _move(version, "", "challenger")


def _move(
    version: int, reason: str, kind: Kind, expected: int | None = None, is_forced: bool = False, check: bool = False
) -> Move:
    ticket = _draw_ticket(version, reason, kind, is_forced)
    try:
        _wait_for_turn(ticket)
        champion = _version_at(CHAMPION)
        before = champion.number if champion else None
        if check and before != expected:
            move_tickets.close(ticket, REFUSED)
            raise ChampionChangedError(
                f"the champion changed from {expected or 'none'} to {before or 'none'} while version {version} was compared; "
                "compare again"
            )
        _renew(ticket)
        move_tickets.begin(ticket, before)
        _write_aliases(kind, version, before)
        move_tickets.close(ticket, DONE)
    except BaseException:
        with contextlib.suppress(Exception):  # the error itself is more important; the next move completes an open one
            if move_tickets.read(ticket).state == WAITING:
                move_tickets.close(ticket, ABANDONED)
        raise
    return move_tickets.read(ticket)


def history() -> list[Move]:
    """All promotions and rollbacks, the oldest first. Empty if there were none."""
    return sorted((move for move in move_tickets.read_all() if move.is_of_champion), key=lambda move: move.number)


def reason_of(version: int) -> str:
    """Reason of a version's last promotion; empty if no move made it the champion, e.g. if it was set by hand in MLflow."""
    return next((move.reason for move in reversed(history()) if move.state == DONE and move.champion == version), "")


def repair() -> list[Move]:
    """Complete the moves whose processes died, and close those that did not begin. Returns the completed ones of the champion.

    Does not wait: if a move of a living process is ahead, it does nothing, because that move completes those before it.
    """
    unfinished = [move for move in move_tickets.read_all() if move.is_open]
    if all(move.has_known_process and move.has_living_process for move in unfinished):
        return []
    ticket = move_tickets.draw(unfinished[0].champion, "", "repair")
    try:
        now_ms = _renew(ticket)
        ahead = _list_ahead(ticket, move_tickets.read(ticket).request)
        return _finish_dead(ahead, ticket) if all(_is_dead(move, now_ms) for move in ahead) else []
    finally:
        with contextlib.suppress(Exception):  # an error of the repair itself is more important
            move_tickets.close(ticket, DONE)


def _draw_ticket(version: int, reason: str, kind: Kind, is_forced: bool) -> int:
    from mlflow.exceptions import MlflowException

    try:
        move_tickets.retry(lambda: client().get_model_version(MODEL_NAME, str(version)))
    except MlflowException as error:
        raise RegistryError(f"want a version of {MODEL_NAME}, got {version} ({error.message}); see `emuedit models`") from error
    return move_tickets.draw(version, reason, kind, is_forced)


def _wait_for_turn(ticket: int) -> None:
    """Wait until every lower ticket is closed; if all belong to dead processes, complete them here."""
    request = move_tickets.read(ticket).request
    last_heartbeat_s, now_ms = time.monotonic(), _renew(ticket)
    while ahead := _list_ahead(ticket, request):
        if all(_is_dead(move, now_ms) for move in ahead):
            _finish_dead(ahead, ticket)
        else:
            time.sleep(min(_POLL_S * len(ahead), _REFRESH_S) * random.uniform(0.5, 1.5))
        if time.monotonic() - last_heartbeat_s > _REFRESH_S:
            last_heartbeat_s, now_ms = time.monotonic(), _renew(ticket)


def _list_ahead(ticket: int, request: str) -> list[Move]:
    """The open tickets ahead. Closes those of the same request, which nobody else would close while this process lives."""
    ahead = move_tickets.open_before(ticket)
    for move in ahead:
        if request and move.request == request:
            move_tickets.close(move.number, ABANDONED)
    return [move for move in ahead if not request or move.request != request]


def _renew(ticket: int) -> int:
    """Send a heartbeat, so that this ticket does not count as dead, and return the server's time in ms.

    Raises ChampionChangedError if another process has closed the ticket already.
    """
    now_ms = move_tickets.renew(ticket)
    if (state := move_tickets.read(ticket).state) != WAITING:
        raise ChampionChangedError(
            f"move {ticket} was set to {state} by another process, because this one sent no heartbeat for "
            f"{_DEAD_AFTER_S:g} s; compare again"
        )
    return now_ms


def _is_dead(move: Move, now_ms: int) -> bool:
    """Whether its process is dead: checked if process ids are comparable, else inferred from missing heartbeats."""
    if not move.is_open:
        return False
    if move.has_known_process:
        return not move.has_living_process
    return now_ms - move.updated_ms > _DEAD_AFTER_S * 1000


def _finish_dead(moves: list[Move], ticket: int) -> list[Move]:
    """Complete moves of dead processes, as the holder of the lowest ticket after them. Returns the moves of the champion.

    Each is read again just before, after a heartbeat of our own, because the list may be outdated.
    """
    finished = []
    for number in sorted(move.number for move in moves):
        now_ms = _renew(ticket)
        move = move_tickets.read(number)
        if not _is_dead(move, now_ms):
            continue
        if move.state == MOVING:
            _write_aliases(move.kind, move.champion, move.before)
        move_tickets.close(number, DONE if move.state == MOVING else ABANDONED)
        if move.is_of_champion:
            finished.append(move)
    return finished


def _write_aliases(kind: str, version: int, before: int | None) -> None:
    """Set the aliases, `previous` first, so that an interruption in between loses no version. Can be repeated."""
    challenger = _version_at(CHALLENGER)
    if kind == move_tickets.CHALLENGER:
        if version != before and (challenger is None or challenger.number < version):
            _set_alias(CHALLENGER, version)
        return
    if before is not None and before != version:
        _set_alias(PREVIOUS, before)
    _set_alias(CHAMPION, version)
    if challenger is not None and challenger.number == version:
        move_tickets.retry(lambda: client().delete_registered_model_alias(MODEL_NAME, CHALLENGER))


def _set_alias(alias: str, version: int) -> None:
    move_tickets.retry(lambda: client().set_registered_model_alias(MODEL_NAME, alias, str(version)))


def _version_at(alias: str) -> ModelVersion | None:
    return move_tickets.retry(lambda: version_at(alias))


def current() -> dict[str, ModelVersion | None]:
    """Alias -> version, for champion, challenger and previous."""
    return {alias: version_at(alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)}
