"""A version that somebody deletes in MLflow, with which MLflow deletes its aliases, stops neither moves nor commands."""

import pytest

from emuedit import cli
from emuedit.promotion import promote
from emuedit.tracking import alias_moves, move_tickets, registry
from tests.promotion.stores import delete_version, draw_ticket, number_at

pytestmark = pytest.mark.usefixtures("versions")


@pytest.mark.slow
def test_a_dead_waiting_ticket_of_a_deleted_version_blocks_nothing(
    readable_files: None, capsys: pytest.CaptureFixture[str]
) -> None:
    alias_moves.move_champion(1, "first")
    alias_moves.move_champion(2, "better", expected=1)
    dead = draw_ticket(3, is_alive=False)
    delete_version(3)
    assert alias_moves.repair() == [], "want completed moves only"
    assert move_tickets.read(dead).state == "abandoned"
    assert cli.main(["models"]) == 0
    capsys.readouterr()
    assert cli.main(["models", "--moves"]) == 0
    assert "   3  abandoned" in capsys.readouterr().out.splitlines()[1], "the history keeps moves to deleted versions"
    assert promote.roll_back().champion == 1


@pytest.mark.slow
def test_a_rollback_after_the_champion_was_deleted(readable_files: None, capsys: pytest.CaptureFixture[str]) -> None:
    alias_moves.move_champion(1, "first")
    alias_moves.move_champion(2, "better", expected=1)
    delete_version(2)
    assert (number_at("champion"), number_at("previous")) == (None, 1)
    move = promote.roll_back()
    assert (move.champion, move.before, move.reason) == (1, None, "rollback; no version was the champion")
    assert (number_at("champion"), number_at("previous")) == (1, None), "the champion is not its own predecessor"
    delete_version(1)
    assert cli.main(["rollback", "--to", "4"]) == 0
    assert capsys.readouterr().out == "champion: version 4; previous: none\n"


@pytest.mark.slow
def test_a_rollback_without_readable_files_leaves_no_champion() -> None:
    alias_moves.move_champion(1, "first")
    alias_moves.move_champion(2, "better", expected=1)
    delete_version(2)
    with pytest.raises(registry.RegistryError, match=r"got 1, so there is still no champion .*choose another one with --to"):
        promote.roll_back()
    assert number_at("champion") is None


@pytest.mark.slow
def test_version_zero_is_not_the_previous_version(readable_files: None) -> None:
    alias_moves.move_champion(1, "first")
    alias_moves.move_champion(2, "better", expected=1)
    with pytest.raises(registry.RegistryError, match="want a version of emuedit-editor, got 0"):
        promote.roll_back(to=0)


@pytest.mark.slow
def test_a_version_that_is_deleted_while_its_move_waits_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alias_moves.move_champion(4, "first")
    alias_moves.move_champion(1, "better", expected=4)
    monkeypatch.setattr(alias_moves, "_wait_for_turn", lambda ticket: delete_version(2))
    with pytest.raises(registry.RegistryError, match="want a version of emuedit-editor, got 2, which was deleted while its move"):
        alias_moves.move_champion(2, "newer", expected=1)
    assert (alias_moves.history()[-1].state, number_at("champion"), number_at("previous")) == ("abandoned", 1, 4)


@pytest.mark.slow
def test_a_deleted_challenger_is_replaced() -> None:
    alias_moves.set_challenger(5)
    delete_version(5)
    alias_moves.set_challenger(3)
    assert number_at("challenger") == 3
