"""Moves of the aliases `champion` and `previous`, one after the other, whoever asks for them and on whatever machine.

MLflow can set an alias, but not only if it still has the value that was read. It does number the versions of a model without
gaps or twins: in SQLite, in PostgreSQL and through a server. So every move is a version of the model `emuedit-editor-moves`,
and its number is a ticket (Lamport's bakery algorithm, Commun. ACM 17(8), 1974): a move waits until all lower numbers are
closed. The tags of the version say what is moved and why, so the same model is the history of promotions.

A move writes what it is going to do before it does it. If its process is killed half-way, the lowest open ticket behind it
finishes it, and no other does: a second one that is slow would write its aliases again after those of a later move.
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
"""Seconds between two signs of life of a waiting move."""
_DEAD_AFTER_S = 60.0
"""A move without a sign of life for so long, by the server's clock, belongs to a process that is gone."""
_POLL_S = 0.2
"""Seconds between two looks at the moves ahead, for each of them: fifty that wait would otherwise keep the registry busy."""


class ChampionChangedError(RegistryError):
    """Raised when the champion is, or may be by now, another than the one that a decision was made about."""


def move_champion(
    version: int, reason: str, kind: Kind = "promotion", expected: int | None = None, is_forced: bool = False, check: bool = True
) -> Move:
    """Make a version the champion, and the champion so far `previous`. Waits for moves that were asked for earlier.

    expected: the champion that the decision was made about (None: there was none). With `check`, another one raises
    ChampionChangedError, and nothing is moved; so does a ticket that others took for dead meanwhile. Raises RegistryError for a
    version that does not exist.
    """
    ticket = _draw_ticket(version, reason, kind, is_forced)
    try:
        _wait_for_turn(ticket)
        champion = version_at(CHAMPION)
        before = champion.number if champion else None
        if check and before != expected:
            move_tickets.close(ticket, REFUSED)
            raise ChampionChangedError(
                f"want version {expected or 'none'} as champion, as when {version} was compared with it, got {before or 'none'}; "
                "compare again"
            )
        _renew(ticket)
        move_tickets.begin(ticket, before)
        _write_aliases(version, before)
        move_tickets.close(ticket, DONE)
    except BaseException:
        with contextlib.suppress(Exception):  # the error itself matters more; an open move is finished by the next one
            if move_tickets.read(ticket).state == WAITING:
                move_tickets.close(ticket, ABANDONED)
        raise
    return move_tickets.read(ticket)


def history() -> list[Move]:
    """All promotions and rollbacks, the oldest first. Empty when nothing was ever moved."""
    return sorted((move for move in move_tickets.read_all() if move.kind != move_tickets.REPAIR), key=lambda move: move.number)


def reason_of(version: int) -> str:
    """Why a version became champion the last time; empty where no move made it the champion, as by hand in MLflow."""
    return next((move.reason for move in reversed(history()) if move.state == DONE and move.champion == version), "")


def repair() -> list[Move]:
    """Finish the moves whose processes died half-way, and close those that never began. Returns what was repaired.

    Waits for nobody: behind a move of a living process it does nothing, as that one repairs what is ahead of it.
    """
    unfinished = [move for move in move_tickets.read_all() if move.is_open]
    if all(move.has_known_process and move.has_living_process for move in unfinished):
        return []
    ticket = move_tickets.draw(unfinished[0].champion, "", "repair")
    try:
        now_ms = _renew(ticket)
        ahead = move_tickets.open_before(ticket)
        return _finish_dead(ahead, ticket) if all(_is_dead(move, now_ms) for move in ahead) else []
    finally:
        with contextlib.suppress(Exception):  # an error of the repair itself matters more
            move_tickets.close(ticket, DONE)


def _draw_ticket(version: int, reason: str, kind: Kind, is_forced: bool) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client().get_model_version(MODEL_NAME, str(version))
    except MlflowException as error:
        raise RegistryError(f"want a version of {MODEL_NAME}, got {version} ({error.message}); see `emuedit models`") from error
    return move_tickets.draw(version, reason, kind, is_forced)


def _wait_for_turn(ticket: int) -> None:
    """Return when every lower ticket is closed; where all of them are of dead processes, they are finished here."""
    last_sign, now_ms = time.monotonic(), _renew(ticket)
    while ahead := move_tickets.open_before(ticket):
        if all(_is_dead(move, now_ms) for move in ahead):
            _finish_dead(ahead, ticket)
        else:
            time.sleep(min(_POLL_S * len(ahead), _REFRESH_S) * random.uniform(0.5, 1.5))
        if time.monotonic() - last_sign > _REFRESH_S:
            last_sign, now_ms = time.monotonic(), _renew(ticket)


def _renew(ticket: int) -> int:
    """Give a sign of life, so that nobody takes this ticket for dead in the next minute, and return the server's time in ms.

    Raises ChampionChangedError where somebody has done so already: the turn has passed.
    """
    now_ms = move_tickets.renew(ticket)
    if (state := move_tickets.read(ticket).state) != WAITING:
        raise ChampionChangedError(
            f"want move {ticket} to wait for its turn, got {state}: this process gave no sign of life for "
            f"{_DEAD_AFTER_S:g} s and was taken for dead; compare again"
        )
    return now_ms


def _is_dead(move: Move, now_ms: int) -> bool:
    """Whether its process is gone: known where process ids are comparable, else inferred from its silence."""
    if not move.is_open:
        return False
    if move.has_known_process:
        return not move.has_living_process
    return now_ms - move.updated_ms > _DEAD_AFTER_S * 1000


def _finish_dead(moves: list[Move], ticket: int) -> list[Move]:
    """Do again what dead processes had begun, as the holder of the lowest ticket behind them. Returns what was finished.

    What they left is read again right before, with a sign of life of our own: the list may be old by now.
    """
    finished = []
    for number in sorted(move.number for move in moves):
        now_ms = _renew(ticket)
        move = move_tickets.read(number)
        if not _is_dead(move, now_ms):
            continue
        if move.state == MOVING:
            _write_aliases(move.champion, move.before)
        move_tickets.close(number, DONE if move.state == MOVING else ABANDONED)
        if move.kind != move_tickets.REPAIR:
            finished.append(move)
    return finished


def _write_aliases(version: int, before: int | None) -> None:
    """`previous` first: stopped between the two, no version is lost sight of."""
    mlflow = client()
    if before is not None and before != version:
        move_tickets.retry(lambda: mlflow.set_registered_model_alias(MODEL_NAME, PREVIOUS, str(before)))
    move_tickets.retry(lambda: mlflow.set_registered_model_alias(MODEL_NAME, CHAMPION, str(version)))


def current() -> dict[str, ModelVersion | None]:
    """Alias -> version, for champion, challenger and previous."""
    return {alias: version_at(alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)}
