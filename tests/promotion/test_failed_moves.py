"""A move whose process lives on after an error, such as a lost connection to MLflow, holds up nobody."""

import time
from collections.abc import Callable, Iterator

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.store.model_registry import sqlalchemy_store

from emuedit.tracking import alias_moves, move_tickets, registry
from emuedit.tracking.service_errors import ServiceError
from tests.promotion.stores import draw_ticket, number_at

pytestmark = pytest.mark.usefixtures("versions")
ELSEWHERE = "another-boot/pid:[4026531836]"
MAX_S = 5.0
"""A move takes half a second here; one that waits for a living process never ends."""


def fails(times: int, call: Callable[..., object], alias: str = "") -> Callable[..., object]:
    """The call, which raises an error at first: always, or only for an alias."""
    left = [times]

    def attempt(*arguments: object, **options: object) -> object:
        if left[0] and (not alias or arguments[0] == alias):
            left[0] -= 1
            raise MlflowException("server closed the connection unexpectedly", INTERNAL_ERROR)
        return call(*arguments, **options)

    return attempt


def fails_after(times: int, call: Callable[..., None], text: str) -> Callable[..., None]:
    """The call, which raises an error with this text after it was made so many times."""
    left = [times]

    def attempt(*arguments: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise MlflowException(text, INTERNAL_ERROR)
        call(*arguments)

    return attempt


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waiting for long is an error."""
    start_s, sleep = time.monotonic(), time.sleep

    def limited(seconds: float) -> None:
        assert time.monotonic() - start_s < MAX_S, "it waits for a move that nobody completes"
        sleep(seconds)

    monkeypatch.setattr(alias_moves.time, "sleep", limited)
    yield
    assert time.monotonic() - start_s < 2 * MAX_S


@pytest.mark.slow
def test_a_write_that_fails_once_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    alias_moves.move_champion(1, "first")
    monkeypatch.setattr(alias_moves, "_set_alias", fails(1, alias_moves._set_alias, "champion"))
    assert alias_moves.move_champion(2, "better", expected=1).state == "done"
    assert (number_at("champion"), number_at("previous")) == (2, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("is_marked", [True, False])
def test_a_write_that_keeps_failing_is_completed_by_the_next_move(is_marked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """is_marked: whether MLflow answers in time to record that the process has given the move up."""
    alias_moves.move_champion(1, "first")
    with monkeypatch.context() as broken:
        broken.setattr(alias_moves, "_set_alias", fails(2, alias_moves._set_alias, "champion"))
        if not is_marked:
            broken.setattr(move_tickets, "release", fails(1, move_tickets.release))
        outcome = r"the move of version 2 to champion has begun; `emuedit models` completes it"
        with pytest.raises(ServiceError, match=outcome if is_marked else "it is unknown whether version 2 became champion"):
            alias_moves.move_champion(2, "better", expected=1)
    assert number_at("champion") == 1
    assert alias_moves.move_champion(3, "newer", expected=2).before == 2
    assert [move.state for move in alias_moves.history()] == ["done"] * 3
    assert (number_at("champion"), number_at("previous")) == (3, 2)


@pytest.mark.slow
def test_another_process_of_this_machine_completes_what_a_living_one_has_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    alias_moves.move_champion(1, "first")
    with monkeypatch.context() as broken:
        broken.setattr(alias_moves, "_set_alias", fails(2, alias_moves._set_alias, "champion"))
        with pytest.raises(ServiceError):
            alias_moves.move_champion(2, "better", expected=1)
    monkeypatch.setattr(alias_moves, "_given_up", set())
    assert [move.champion for move in alias_moves.repair()] == [2]
    assert number_at("champion") == 2


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("place", ["_draw", "_renew", "begin", "close", "repair"])
def test_an_error_at_any_place_leaves_no_ticket_to_wait_for(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ticket is there, but MLflow is lost from then on."""
    alias_moves.move_champion(1, "first")
    if place == "repair":
        draw_ticket(2, is_alive=False)
    with monkeypatch.context() as broken:
        names = {"_draw": "read", "_renew": "renew", "begin": "begin", "close": "close", "repair": "renew"}
        broken.setattr(move_tickets, names[place], fails(9, getattr(move_tickets, names[place])))
        broken.setattr(move_tickets, "release", fails(9, move_tickets.release))
        broken.setattr(move_tickets, "close", fails(9, move_tickets.close))
        with pytest.raises((ServiceError, MlflowException)):
            alias_moves.repair() if place == "repair" else alias_moves.move_champion(2, "better", expected=1)
    alias_moves.move_champion(3, "newer", check=False)
    assert number_at("champion") == 3
    assert not any(move.is_open for move in move_tickets.read_all())


def test_a_lost_answer_to_the_request_for_a_ticket_leaves_none_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = move_tickets.draw

    def draw_and_lose(*arguments: object, **options: object) -> int:
        draw(*arguments, **options)  # type: ignore[arg-type]
        raise MlflowException("timed out", INTERNAL_ERROR)

    with monkeypatch.context() as broken:
        broken.setattr(move_tickets, "draw", draw_and_lose)
        with pytest.raises(ServiceError, match="it may be overloaded; version 2 did not become champion"):
            alias_moves.move_champion(2, "better")
    assert [move.state for move in alias_moves.history()] == ["abandoned"]


GATEWAY = "API request failed: Max retries exceeded (Caused by ResponseError('too many {} error responses'))"


def loses_answers(call: Callable[..., None], text: str, times: int) -> Callable[..., None]:
    """The call, whose first answers are lost: it is made, and then raises an error with this text."""
    left = [times]

    def attempt(*arguments: object) -> None:
        call(*arguments)
        if left[0]:
            left[0] -= 1
            raise MlflowException(text, INTERNAL_ERROR)

    return attempt


@pytest.mark.slow
@pytest.mark.parametrize("text", ["Read timed out", GATEWAY.format(502), GATEWAY.format(504)])
def test_a_move_whose_answer_was_lost_is_looked_up(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alias_moves.move_champion(1, "first")
    with monkeypatch.context() as gateway:
        gateway.setattr(move_tickets, "close", loses_answers(move_tickets.close, text, 1))
        assert alias_moves.move_champion(2, "better", expected=1).state == "done"
    with monkeypatch.context() as gateway:
        gateway.setattr(move_tickets, "close", loses_answers(move_tickets.close, text, 1))
        gateway.setattr(move_tickets, "renew", fails_after(2, move_tickets.renew, text))
        with pytest.raises(ServiceError, match=r"(in time|no answer).*; version 3 became champion before that"):
            alias_moves.move_champion(3, "newer", expected=2)
    assert (number_at("champion"), number_at("previous")) == (3, 2)


def test_a_registry_that_cannot_be_reached_is_not_a_missing_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The retrain then registers the model later; for a missing version it would fail."""
    monkeypatch.setattr(registry, "client", fails(2, registry.client))
    with pytest.raises(MlflowException, match="server closed the connection"):
        registry.get_version(2)
    with pytest.raises(MlflowException, match="server closed the connection"):
        alias_moves.move_champion(2, "better")
    assert alias_moves.history() == []


@pytest.mark.slow
def test_a_long_wait_names_the_move_ahead(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ahead = [draw_ticket(2), draw_ticket(4, ELSEWHERE)]
    polls = iter(range(3))

    def sleep(seconds: float) -> None:
        if next(polls) == 2:
            for ticket in ahead:
                move_tickets.close(ticket, "done")

    monkeypatch.setattr(alias_moves, "_REPORT_AFTER_S", 0.0)
    monkeypatch.setattr(alias_moves.time, "sleep", sleep)
    alias_moves.move_champion(3, "better")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("== waiting for move 1 to version 2 by ")
    assert line.endswith("; if that process hangs, end it")


@pytest.mark.slow
@pytest.mark.parametrize("offset_s", [-120, 120])
def test_clocks_of_other_machines_do_not_matter(offset_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server, each machine writes the time of its own clock to the database."""
    now_ms = sqlalchemy_store.get_current_time_millis
    polls = iter(range(3))

    def at_the_other_machine(call: Callable[[], object]) -> None:
        with monkeypatch.context() as other:
            other.setattr(sqlalchemy_store, "get_current_time_millis", lambda: now_ms() + 1000 * offset_s)
            call()

    at_the_other_machine(lambda: draw_ticket(2, ELSEWHERE))

    def sleep(seconds: float) -> None:
        is_last = next(polls) == 2
        at_the_other_machine(lambda: move_tickets.close(1, "done") if is_last else move_tickets.renew(1))

    monkeypatch.setattr(alias_moves.time, "sleep", sleep)
    alias_moves.move_champion(3, "better")
    assert [move.state for move in alias_moves.history()] == ["done", "done"], "want the living one waited for"


@pytest.mark.slow
@pytest.mark.parametrize("offset_s", [-120, 0, 120])
def test_dead_moves_of_other_machines_are_completed_together(offset_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alias_moves, "_DEAD_AFTER_S", 1.0)
    now_ms = sqlalchemy_store.get_current_time_millis
    with monkeypatch.context() as other:
        other.setattr(sqlalchemy_store, "get_current_time_millis", lambda: now_ms() + 1000 * offset_s)
        tickets = [draw_ticket(version, ELSEWHERE) for version in (2, 3)]
    move_tickets.begin(tickets[0], None)
    sleep, slept_s = time.sleep, list[float]()

    def record(seconds: float) -> None:
        slept_s.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(alias_moves.time, "sleep", record)
    assert [move.champion for move in alias_moves.repair()] == [2]
    assert sum(slept_s) < 2.0, "want one period for both"
    assert [move.state for move in alias_moves.history()] == ["done", "abandoned"]


@pytest.mark.slow
def test_a_repair_waits_neither_without_open_moves_nor_for_a_living_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sleep(seconds: float) -> None:
        raise AssertionError("want no wait")

    alias_moves.move_champion(1, "first")
    with monkeypatch.context() as waiting:
        waiting.setattr(alias_moves.time, "sleep", no_sleep)
        assert alias_moves.repair() == []
        draw_ticket(2)
        draw_ticket(3, ELSEWHERE)
        assert alias_moves.repair() == []


@pytest.mark.slow
def test_a_repair_ends_when_another_machine_sends_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = draw_ticket(2, ELSEWHERE)
    n_sleeps = []

    def sleep(seconds: float) -> None:
        n_sleeps.append(seconds)
        move_tickets.renew(ticket)

    monkeypatch.setattr(alias_moves.time, "sleep", sleep)
    assert alias_moves.repair() == []
    assert (len(n_sleeps), move_tickets.read(ticket).state) == (1, "waiting")
