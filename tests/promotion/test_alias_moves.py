"""Moves of the champion: one after the other, finished when their process died, and never on an outdated comparison."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from emuedit.promotion import promote
from emuedit.tracking import alias_moves, registry
from tests.promotion.stores import number_at

DEAD_MOVE = """
import os, signal
from emuedit.tracking import alias_moves
if {begin}:
    alias_moves._write_aliases = lambda version, before: os.kill(os.getpid(), signal.SIGKILL)
else:
    alias_moves._wait_for_turn = lambda ticket: os.kill(os.getpid(), signal.SIGKILL)
alias_moves.move_champion(2, "new", expected=1)
"""


def die_while_moving(begin: bool) -> None:
    """A process asks for version 2 and is killed: before it writes an alias, or before its turn."""
    process = subprocess.run([sys.executable, "-c", DEAD_MOVE.format(begin=begin)], check=False, capture_output=True)
    assert process.returncode == -9, process.stderr.decode()


def test_a_move_names_champion_and_previous_and_is_remembered(versions: int) -> None:
    alias_moves.move_champion(1, "first")
    move = alias_moves.move_champion(3, "better", expected=1, is_forced=True)
    assert (number_at("champion"), number_at("previous")) == (3, 1)
    assert (move.number, move.state, move.champion, move.before, move.reason, move.is_forced) == (2, "done", 3, 1, "better", True)
    assert "@" in move.requested_by
    assert [entry.champion for entry in alias_moves.history()] == [1, 3]


def test_an_outdated_comparison_moves_nothing(versions: int) -> None:
    alias_moves.move_champion(1, "first")
    with pytest.raises(alias_moves.ChampionChangedError, match=r"want version 2 as champion, as when 3 was .* it, got 1"):
        alias_moves.move_champion(3, "better than 2", expected=2)
    assert (number_at("champion"), number_at("previous")) == (1, None)
    assert alias_moves.history()[-1].state == "refused"


def test_a_version_that_does_not_exist_is_named(versions: int) -> None:
    with pytest.raises(registry.RegistryError, match="want a version of emuedit-editor, got 99"):
        alias_moves.move_champion(99, "none")
    assert alias_moves.history() == []


@pytest.mark.slow
def test_concurrent_moves_leave_one_champion_and_the_right_previous(versions: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: alias_moves.move_champion(number, "at once", check=False), range(1, versions + 1)))
    moves = alias_moves.history()
    assert [move.state for move in moves] == ["done"] * versions
    assert [move.before for move in moves[1:]] == [move.champion for move in moves[:-1]]
    assert (number_at("champion"), number_at("previous")) == (moves[-1].champion, moves[-2].champion)


@pytest.mark.slow
def test_the_next_command_finishes_what_a_killed_process_began(versions: int) -> None:
    alias_moves.move_champion(1, "first")
    die_while_moving(begin=True)
    assert (number_at("champion"), alias_moves.history()[-1].state) == (1, "moving")
    assert [move.champion for move in alias_moves.repair()] == [2]
    assert (number_at("champion"), number_at("previous"), alias_moves.history()[-1].state) == (2, 1, "done")


@pytest.mark.slow
def test_a_process_that_died_in_the_queue_holds_up_nobody(versions: int) -> None:
    alias_moves.move_champion(1, "first")
    die_while_moving(begin=False)
    alias_moves.move_champion(3, "better", expected=1)
    assert [move.state for move in alias_moves.history()] == ["done", "abandoned", "done"]
    assert (number_at("champion"), number_at("previous")) == (3, 1)


def test_a_move_of_another_machine_is_given_up_after_a_minute_without_a_sign_of_life(
    versions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(alias_moves.socket, "gethostname", lambda: "elsewhere")
        ticket = alias_moves._draw_ticket(2, "lost", "promotion", False)
    (move,) = alias_moves.history()
    assert move.number == ticket
    assert not alias_moves._is_dead(move, move.updated_ms + 59_000)
    assert alias_moves._is_dead(move, move.updated_ms + 61_000)


def test_rollback_goes_to_the_previous_champion_and_back(versions: int) -> None:
    alias_moves.move_champion(1, "first")
    with pytest.raises(registry.RegistryError, match="got no alias previous; name a version with --to"):
        promote.roll_back()
    alias_moves.move_champion(2, "better", expected=1)
    assert promote.roll_back().champion == 1
    assert (number_at("champion"), number_at("previous")) == (1, 2)
    assert promote.roll_back(to=3, reason="tried").reason == "tried"
    assert (number_at("champion"), number_at("previous")) == (3, 1)
    assert [move.kind for move in alias_moves.history()] == ["promotion", "promotion", "rollback", "rollback"]


def test_without_a_champion_there_is_nothing_to_go_back_from(versions: int) -> None:
    with pytest.raises(registry.RegistryError, match="want a champion to go back from, got none"):
        promote.roll_back()
