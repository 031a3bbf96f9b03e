"""A move whose process is killed, at any place, is completed or abandoned by the next command."""

import subprocess
import sys
from typing import Literal

import pytest

from emuedit.tracking import alias_moves
from tests.promotion.stores import delete_version, number_at

DEAD_MOVE = """
import os, signal
from emuedit.tracking import alias_moves
from mlflow.tracking import MlflowClient

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

set_alias = MlflowClient.set_registered_model_alias
if "{place}" == "queue":
    alias_moves._wait_for_turn = die
elif "{place}" == "before the aliases":
    alias_moves._write_aliases = die
else:
    MlflowClient.set_registered_model_alias = (
        lambda client, name, alias, version: die() if alias == "champion" else set_alias(client, name, alias, version)
    )
alias_moves.{call}
"""
Place = Literal["queue", "before the aliases", "between the aliases"]


def die_while_moving(place: Place, call: str = 'move_champion(2, "new", expected=1)') -> None:
    """A process asks for version 2 and is killed."""
    program = DEAD_MOVE.format(place=place, call=call)
    process = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert process.returncode == -9, process.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("place", "previous"), [("before the aliases", None), ("between the aliases", 1)])
def test_the_next_command_finishes_what_a_killed_process_began(versions: int, place: Place, previous: int | None) -> None:
    alias_moves.move_champion(1, "first")
    alias_moves.set_challenger(2)
    die_while_moving(place)
    aliases = (number_at("champion"), number_at("previous"), number_at("challenger"))
    assert (aliases, alias_moves.history()[-1].state) == ((1, previous, 2), "moving")
    assert [move.champion for move in alias_moves.repair()] == [2]
    aliases = (number_at("champion"), number_at("previous"), number_at("challenger"))
    assert (aliases, alias_moves.history()[-1].state) == ((2, 1, None), "done")


@pytest.mark.slow
def test_a_new_version_whose_process_was_killed_becomes_challenger(versions: int) -> None:
    die_while_moving("before the aliases", "set_challenger(2)")
    assert number_at("challenger") is None
    assert alias_moves.repair() == [], "it is not a move of the champion"
    assert (number_at("challenger"), number_at("champion"), alias_moves.history()) == (2, None, [])


@pytest.mark.slow
def test_a_process_that_died_in_the_queue_holds_up_nobody(versions: int) -> None:
    alias_moves.move_champion(1, "first")
    die_while_moving("queue")
    alias_moves.move_champion(3, "better", expected=1)
    assert [move.state for move in alias_moves.history()] == ["done", "abandoned", "done"]
    assert (number_at("champion"), number_at("previous")) == (3, 1)


@pytest.mark.slow
def test_a_killed_move_to_a_version_that_was_deleted_is_abandoned(versions: int) -> None:
    alias_moves.move_champion(4, "first")
    alias_moves.move_champion(1, "better", expected=4)
    die_while_moving("before the aliases")
    delete_version(2)
    assert alias_moves.repair() == []
    assert (alias_moves.history()[-1].state, number_at("champion"), number_at("previous")) == ("abandoned", 1, 4)
    alias_moves.set_challenger(5)
    move = alias_moves.move_champion(3, "newer", expected=1)
    assert (move.before, number_at("champion"), number_at("previous"), number_at("challenger")) == (1, 3, 1, 5)


@pytest.mark.slow
def test_a_killed_move_from_a_version_that_was_deleted_is_completed(versions: int) -> None:
    alias_moves.move_champion(4, "first")
    alias_moves.move_champion(1, "better", expected=4)
    die_while_moving("before the aliases")
    delete_version(1)
    assert [move.champion for move in alias_moves.repair()] == [2]
    assert (alias_moves.history()[-1].state, number_at("champion"), number_at("previous")) == ("done", 2, 4)
