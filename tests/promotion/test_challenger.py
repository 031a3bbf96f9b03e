"""The alias `challenger`: the newest version that is not the champion, set in the same order as the champion."""

import pytest

from emuedit.tracking import alias_moves
from tests.promotion.stores import draw_ticket, number_at


@pytest.mark.slow
def test_the_newest_version_is_the_challenger_whoever_asks_last(versions: int) -> None:
    alias_moves.set_challenger(3)
    alias_moves.set_challenger(2)
    assert number_at("challenger") == 3
    alias_moves.move_champion(3, "better")
    assert (number_at("champion"), number_at("challenger")) == (3, None)
    alias_moves.set_challenger(3)
    assert number_at("challenger") is None, "the champion is no challenger"
    alias_moves.set_challenger(4)
    alias_moves.move_champion(5, "by hand", expected=3)
    assert (number_at("champion"), number_at("challenger")) == (5, 4)
    assert [move.champion for move in alias_moves.history()] == [3, 5]


@pytest.mark.slow
def test_a_challenger_waits_for_its_turn(versions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it could be set while a promotion of the same version removes it."""
    draw_ticket(2)

    def stop(seconds: float) -> None:
        raise InterruptedError

    monkeypatch.setattr(alias_moves.time, "sleep", stop)
    with pytest.raises(InterruptedError):
        alias_moves.set_challenger(2)
    assert number_at("challenger") is None
