"""Serialised moves of the aliases `champion`, `previous` and `challenger`, for processes on any machine.

MLflow cannot set an alias only if it still has the value that was read (compare-and-swap). But it numbers the versions of a model
uniquely and without gaps: in SQLite, in PostgreSQL and through a server. So every move is a version of `emuedit-editor-moves`,
and its number is a ticket (Lamport's bakery algorithm, Commun. ACM 17(8), 1974): a move waits until all lower tickets are closed.
The tags of the version contain the move and its reason, so this model is also the history of promotions.

`challenger` is the newest version that is not the champion. A new version gets it by a ticket of its own, which is not part of
the history; a promotion or rollback removes it from the version that becomes champion.

A move records its intent first. If its process dies, only the lowest open ticket after it completes it, since a slower second
one could overwrite a later move. A version may be deleted in MLflow at any time: its unfinished moves are then abandoned.
"""

import contextlib
import random
import sys
import time

from emuedit.process_identity import UnchangedTimer
from emuedit.tracking import move_tickets
from emuedit.tracking.mlflow_client import client
from emuedit.tracking.move_tickets import ABANDONED, DONE, MOVING, REFUSED, WAITING, Kind, Move
from emuedit.tracking.registry import MODEL_NAME, ModelVersion, RegistryError, get_version, has_version, version_at
from emuedit.tracking.service_errors import ServiceError, describe, is_away

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
_REFRESH_S = 5.0
"""Seconds between two heartbeats of a waiting move."""
_DEAD_AFTER_S = 60.0
"""A move whose heartbeat stays unchanged for this time, by this machine's monotonic clock, belongs to a dead process."""
_REPORT_AFTER_S = 5.0
"""Seconds of waiting after which the move ahead is reported."""
_POLL_S = 0.2
"""Seconds between two polls, times the number of moves ahead, so that many waiting moves do not overload the registry."""
_heartbeats = UnchangedTimer()
_UNKNOWN = ""
_OUTCOMES = {
    DONE: "version {} became {} before that",
    MOVING: "the move of version {} to {} has begun; `emuedit models` completes it",
    ABANDONED: "version {} did not become {}",
    _UNKNOWN: "it is unknown whether version {} became {}; `emuedit models` says so, and completes the move if it has begun",
}
"""State of a move after an error such as a time-out or a status 502 or 504, which do not tell -> what is known of it."""
_given_up: set[str] = set()
"""Requests of this process that failed. Their tickets may still be open, if MLflow could not be reached to record it."""


class ChampionChangedError(RegistryError):
    """Raised if the champion has changed, or may have changed, since the decision."""


def move_champion(
    version: int, reason: str, kind: Kind = "promotion", expected: int | None = None, is_forced: bool = False, check: bool = True
) -> Move:
    """Make a version the champion, and the current champion `previous`. Waits for moves that were requested earlier.

    expected: the champion at the decision (None: none). With `check`, another champion raises ChampionChangedError and nothing is
    moved; so does a ticket that another process closed because it counted as dead. Raises RegistryError for a version that does
    not exist, and ServiceError, which says what became of the move, if MLflow cannot be used any more.
    """
    return _move(version, reason, kind, expected, is_forced, check)


def check_champion(version: int, expected: int | None) -> None:
    """Raise ChampionChangedError if the champion is not `expected`, with which `version` was compared."""
    champion = _version_at(CHAMPION)
    current = champion.number if champion else None
    if current != expected:
        raise ChampionChangedError(_describe_change(version, expected, current))


def _describe_change(version: int, expected: int | None, current: int | None) -> str:
    change = f"the champion changed from {expected or 'none'} to {current or 'none'}"
    return f"{change} while version {version} was compared; compare again"


def set_challenger(version: int) -> None:
    """Make a version the challenger, unless a newer one is, or it is the champion. Waits for moves that were requested earlier.

    Raises the errors of `move_champion`.
    """
    _move(version, "", "challenger")


def _move(
    version: int, reason: str, kind: Kind, expected: int | None = None, is_forced: bool = False, check: bool = False
) -> Move:
    move_tickets.retry(lambda: get_version(version))
    request = move_tickets.new_request()
    try:
        ticket = move_tickets.draw(version, reason, kind, is_forced, request)
        _wait_for_turn(ticket)
        champion = _version_at(CHAMPION)
        before = champion.number if champion else None
        if check and before != expected:
            move_tickets.close(ticket, REFUSED)
            raise ChampionChangedError(_describe_change(version, expected, before))
        _renew(ticket)
        move_tickets.begin(ticket, before)
        if _complete_here(ticket, kind, version, before) == ABANDONED:
            raise RegistryError(
                f"want a version of {MODEL_NAME}, got {version}, which was deleted while its move waited; see `emuedit models`"
            )
        return move_tickets.read(ticket)
    except BaseException as error:
        outcome = _OUTCOMES[_release(request)].format(version, CHALLENGER if kind == CHALLENGER else CHAMPION)
        if is_away(error):
            raise ServiceError(f"{describe(error)}; {outcome}") from error
        raise


def _complete_here(ticket: int, kind: str, version: int, before: int | None) -> str:
    """`_complete` a move of this process: again after an error such as a lost connection, unless another process has done so."""
    try:
        return _complete(ticket, kind, version, before)
    except Exception:  # of MLflow, its HTTP library or its database; if it persists, the second try raises it
        move_tickets.renew(ticket)
        state = move_tickets.read(ticket).state
        return _complete(ticket, kind, version, before) if state == MOVING else state


def _release(request: str) -> str:
    """`move_tickets.give_up`; if MLflow cannot be reached, `_UNKNOWN`, and only moves of this process know of it."""
    _given_up.add(request)
    with contextlib.suppress(Exception):  # the error itself is more important
        return move_tickets.give_up(request)
    return _UNKNOWN


def history() -> list[Move]:
    """All promotions and rollbacks, the oldest first. Empty if there were none."""
    return sorted((move for move in move_tickets.read_all() if move.is_of_champion), key=lambda move: move.number)


def reason_of(version: ModelVersion) -> str:
    """Reason of a version's last promotion; empty if no move made it the champion, e.g. if it was set by hand in MLflow."""
    return next((move.reason for move in reversed(history()) if move.state == DONE and move.is_to(version)), "")


def repair() -> list[Move]:
    """Complete the moves whose processes died, and close those that did not begin. Returns the completed ones of the champion.

    Does not wait for living processes: if one is ahead, it does nothing, because that one completes those before it. A ticket of
    another machine counts as dead if its heartbeat does not change during `_DEAD_AFTER_S`; only then this takes time.
    """
    unfinished = [move for move in move_tickets.read_all() if move.is_open]
    if all(move.has_known_process and not _is_dead(move) for move in unfinished):
        return []
    request = move_tickets.new_request()
    try:
        ticket = move_tickets.draw(unfinished[0].champion, "", "repair", request=request)
        finished = _wait_for_turn(ticket, only_for_dead=True)
        move_tickets.close(ticket, DONE)
    except BaseException:
        _release(request)
        raise
    return finished


def _wait_for_turn(ticket: int, only_for_dead: bool = False) -> list[Move]:
    """Wait until every lower ticket is closed; if all belong to dead processes, complete them here.

    only_for_dead: stop waiting when a lower ticket turns out to belong to a living process. Returns the completed moves of the
    champion.
    """
    request, finished = move_tickets.read(ticket).request, list[Move]()
    first_heartbeats: dict[int, int] = {}
    has_reported, start_s = False, time.monotonic()
    _renew(ticket)
    last_renewal_s = time.monotonic()
    while ahead := _list_ahead(ticket, request):
        are_dead = [_is_dead(move) for move in ahead]  # all of them, since the time of each counts from its first check
        others = [move for move, is_dead in zip(ahead, are_dead, strict=True) if not is_dead]
        is_alive = [
            move.has_known_process or first_heartbeats.setdefault(move.number, move.updated_ms) != move.updated_ms
            for move in others
        ]
        if not others:
            finished += _finish_dead(ahead, ticket)
        elif only_for_dead and any(is_alive):
            break
        else:
            if not has_reported and time.monotonic() - start_s > _REPORT_AFTER_S:
                has_reported = True
                print(f"== waiting for {_describe(others[0])}", file=sys.stderr, flush=True)
            time.sleep(min(_POLL_S * len(ahead), _REFRESH_S) * random.uniform(0.5, 1.5))
        if time.monotonic() - last_renewal_s > _REFRESH_S:
            _renew(ticket)
            last_renewal_s = time.monotonic()
    return finished


def _describe(move: Move) -> str:
    """A move that others wait for, and until when."""
    text = f"move {move.number} to version {move.champion} by {move.requested_by}"
    if move.has_known_process:
        return f"{text}, process {move.process.partition(':')[0]}; if that process hangs, end it"
    return f"{text}; it counts as dead after {_DEAD_AFTER_S:g} s without a heartbeat"


def _list_ahead(ticket: int, request: str) -> list[Move]:
    """The open tickets ahead. Closes those of the same request, which nobody else would close while this process lives."""
    ahead = move_tickets.open_before(ticket)
    for move in ahead:
        if request and move.request == request:
            move_tickets.close(move.number, ABANDONED)
    return [move for move in ahead if not request or move.request != request]


def _renew(ticket: int) -> None:
    """Send a heartbeat, so that this ticket does not count as dead.

    Raises ChampionChangedError if another process has closed the ticket already.
    """
    move_tickets.renew(ticket)
    if (state := move_tickets.read(ticket).state) != WAITING:
        raise ChampionChangedError(
            f"move {ticket} was set to {state} by another process, because this one sent no heartbeat for "
            f"{_DEAD_AFTER_S:g} s; compare again"
        )


def _is_dead(move: Move) -> bool:
    """Whether its process is dead or has given it up: checked if process ids are comparable, else inferred from heartbeats."""
    if not move.is_open:
        return False
    if move.is_released or move.request in _given_up:
        return True
    if move.has_known_process:
        return not move.has_living_process
    return _heartbeats.seconds((move.number, move.request), move.updated_ms) > _DEAD_AFTER_S


def _finish_dead(moves: list[Move], ticket: int) -> list[Move]:
    """Complete moves of dead processes, as the holder of the lowest ticket after them. Returns those that moved the champion.

    Each is read again just before, after a heartbeat of this ticket, because the list may be outdated.
    """
    finished = []
    for number in sorted(move.number for move in moves):
        _renew(ticket)
        move = move_tickets.read(number)
        if not _is_dead(move):
            continue
        if move.state == WAITING:
            move_tickets.close(number, ABANDONED)
        elif _complete(number, move.kind, move.champion, move.before) == DONE and move.is_of_champion:
            finished.append(move)
    return finished


def _complete(number: int, kind: str, version: int, before: int | None) -> str:
    """Write the aliases of a move that has begun, and close it. Returns its state: abandoned if the version was deleted."""
    state = DONE if _write_aliases(kind, version, before) else ABANDONED
    move_tickets.close(number, state)
    return state


def _write_aliases(kind: str, version: int, before: int | None) -> bool:
    """Set the aliases, `previous` first, so that an interruption in between loses no version. Can be repeated.

    Returns False, and writes nothing, if the version was deleted.
    """
    if not _exists(version):
        return False
    challenger = _version_at(CHALLENGER)
    if kind == move_tickets.CHALLENGER:
        if version != before and (challenger is None or challenger.number < version):
            _set_alias(CHALLENGER, version)
        return True
    if before is not None and before != version and _exists(before):
        _set_alias(PREVIOUS, before)
    _set_alias(CHAMPION, version)
    previous = _version_at(PREVIOUS)
    for alias, holder in ((CHALLENGER, challenger), (PREVIOUS, previous)):
        if holder is not None and holder.number == version:
            _delete_alias(alias)
    return True


def _exists(version: int) -> bool:
    return move_tickets.retry(lambda: has_version(version))


def _set_alias(alias: str, version: int) -> None:
    move_tickets.retry(lambda: client().set_registered_model_alias(MODEL_NAME, alias, str(version)))


def _delete_alias(alias: str) -> None:
    move_tickets.retry(lambda: client().delete_registered_model_alias(MODEL_NAME, alias))


def _version_at(alias: str) -> ModelVersion | None:
    return move_tickets.retry(lambda: version_at(alias))


def current() -> dict[str, ModelVersion | None]:
    """Alias -> version, for champion, challenger and previous."""
    return {alias: version_at(alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)}
