"""A move whose process is killed, at any place, is completed or abandoned by the next command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emuedit.processes import die_with_parent
from emuedit.tracking import alias_moves
from tests.flows.conftest import set_environment
from tests.promotion.killed_moves import Place
from tests.promotion.stores import delete_version, number_at
from tests.repository import ROOT

Die = Callable[..., None]


@pytest.fixture(scope="module")
def mover(home: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process with `killed_moves.serve`."""
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, home)
        command = [sys.executable, "-c", "from tests.promotion import killed_moves; killed_moves.serve()"]
        pipes: dict[str, int] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=ROOT, text=True, preexec_fn=die_with_parent, **pipes)  # type: ignore[call-overload]
    with process:
        yield process
        process.kill()


@pytest.fixture
def die_while_moving(mover: "subprocess.Popen[str]") -> Die:
    """A process asks for version 2, unless other arguments are passed, and is killed."""

    def die(place: Place, function: str = "move_champion", **arguments: object) -> None:
        request = {"folder": str(Path.cwd()), "environment": dict(os.environ), "place": place, "function": function}
        requests, statuses = mover.stdin, mover.stdout
        assert requests is not None
        assert statuses is not None
        print(
            json.dumps(request | {"arguments": arguments or {"version": 2, "reason": "new", "expected": 1}}),
            file=requests,
            flush=True,
        )
        assert statuses.readline() == "-9\n", "its error is printed"

    return die


@pytest.mark.slow
@pytest.mark.parametrize(("place", "previous"), [("before the aliases", None), ("between the aliases", 1)])
def test_the_next_command_finishes_what_a_killed_process_began(
    versions: int, die_while_moving: Die, place: Place, previous: int | None
) -> None:
    alias_moves.move_champion(1, "first")
    alias_moves.set_challenger(2)
    die_while_moving(place)
    aliases = (number_at("champion"), number_at("previous"), number_at("challenger"))
    assert (aliases, alias_moves.history()[-1].state) == ((1, previous, 2), "moving")
    assert [move.champion for move in alias_moves.repair()] == [2]
    aliases = (number_at("champion"), number_at("previous"), number_at("challenger"))
    assert (aliases, alias_moves.history()[-1].state) == ((2, 1, None), "done")


@pytest.mark.slow
def test_a_new_version_whose_process_was_killed_becomes_challenger(versions: int, die_while_moving: Die) -> None:
    die_while_moving("before the aliases", "set_challenger", version=2)
    assert number_at("challenger") is None
    assert alias_moves.repair() == [], "it is not a move of the champion"
    assert (number_at("challenger"), number_at("champion"), alias_moves.history()) == (2, None, [])


@pytest.mark.slow
def test_a_process_that_died_in_the_queue_holds_up_nobody(versions: int, die_while_moving: Die) -> None:
    alias_moves.move_champion(1, "first")
    die_while_moving("queue")
    alias_moves.move_champion(3, "better", expected=1)
    assert [move.state for move in alias_moves.history()] == ["done", "abandoned", "done"]
    assert (number_at("champion"), number_at("previous")) == (3, 1)


@pytest.mark.slow
def test_a_killed_move_to_a_version_that_was_deleted_is_abandoned(versions: int, die_while_moving: Die) -> None:
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
def test_a_killed_move_from_a_version_that_was_deleted_is_completed(versions: int, die_while_moving: Die) -> None:
    alias_moves.move_champion(4, "first")
    alias_moves.move_champion(1, "better", expected=4)
    die_while_moving("before the aliases")
    delete_version(1)
    assert [move.champion for move in alias_moves.repair()] == [2]
    assert (alias_moves.history()[-1].state, number_at("champion"), number_at("previous")) == ("done", 2, 4)
