"""Moves of the champion: one after the other, finished when their process died, and never on an outdated comparison."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INTERNAL_ERROR,
    RESOURCE_ALREADY_EXISTS,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.tracking import MlflowClient

from emuedit import process_identity
from emuedit.promotion import promote
from emuedit.promotion.gate import Decision, Measurement, decide
from emuedit.promotion.gate_settings import GateSettings
from emuedit.tracking import alias_moves, mlflow_client, move_tickets, registry
from tests.promotion.stores import draw_ticket, number_at


@pytest.mark.slow
def test_a_move_names_champion_and_previous_and_is_remembered(versions: int) -> None:
    alias_moves.move_champion(1, "first")
    move = alias_moves.move_champion(3, "better", expected=1, is_forced=True)
    assert (number_at("champion"), number_at("previous")) == (3, 1)
    assert (move.number, move.state, move.champion, move.before, move.reason, move.is_forced) == (2, "done", 3, 1, "better", True)
    assert "@" in move.requested_by
    assert [entry.champion for entry in alias_moves.history()] == [1, 3]


@pytest.mark.slow
def test_an_outdated_comparison_moves_nothing(versions: int) -> None:
    alias_moves.move_champion(1, "first")
    with pytest.raises(alias_moves.ChampionChangedError, match=r"the champion changed from 2 to 1 while version 3 was compared"):
        alias_moves.move_champion(3, "better than 2", expected=2)
    assert (number_at("champion"), number_at("previous")) == (1, None)
    assert alias_moves.history()[-1].state == "refused"


def test_a_version_that_does_not_exist_is_named(versions: int) -> None:
    with pytest.raises(registry.RegistryError, match="want a version of emuedit-editor, got 99"):
        alias_moves.move_champion(99, "none")
    assert alias_moves.history() == []


@pytest.mark.slow
def test_concurrent_moves_leave_one_champion_and_the_right_previous(versions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alias_moves, "_POLL_S", 0.05)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: alias_moves.move_champion(number, "at once", check=False), range(1, versions + 1)))
    moves = alias_moves.history()
    assert [move.state for move in moves] == ["done"] * versions
    assert [move.before for move in moves[1:]] == [move.champion for move in moves[:-1]]
    assert (number_at("champion"), number_at("previous")) == (moves[-1].champion, moves[-2].champion)


@pytest.mark.slow
def test_a_ticket_that_was_drawn_twice_for_one_request_does_not_wait_for_itself(
    versions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of an MLflow server sends a request again if the answer does not come in time."""
    create = MlflowClient.create_model_version

    def create_twice(*arguments: Any, **options: Any) -> Any:
        create(*arguments, **options)
        return create(*arguments, **options)

    with monkeypatch.context() as slow_server:
        slow_server.setattr(MlflowClient, "create_model_version", create_twice)
        assert alias_moves.move_champion(2, "better").number == 2
    assert [(move.number, move.state) for move in alias_moves.history()] == [(1, "abandoned"), (2, "done")]


@pytest.mark.parametrize("place", ["another-boot/pid:[4026531836]", ""])
def test_a_move_whose_process_cannot_be_looked_for_is_given_up_after_a_minute_without_a_sign_of_life(
    versions: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_ticket(2, place, is_alive=False)
    (move,) = alias_moves.history()
    assert move.requested_by.endswith(f"@{socket.gethostname()}"), "virtual machines may share a name"
    renewed = replace(move, updated_ms=move.updated_ms + 1)
    checks = [(0.0, move, False), (59.0, move, False), (61.0, move, True), (62.0, renewed, False), (123.0, renewed, True)]
    for now_s, ticket, is_dead in checks:
        monkeypatch.setattr(process_identity, "time", SimpleNamespace(monotonic=lambda now_s=now_s: now_s))
        assert alias_moves._is_dead(ticket) == is_dead


@pytest.mark.slow
def test_a_dead_process_of_this_machine_is_seen_at_once(versions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tickets = draw_ticket(2), draw_ticket(2, is_alive=False)
    living, dead = (move_tickets.read(ticket) for ticket in tickets)
    assert alias_moves._is_dead(dead)
    for now_s in (0.0, 61.0):
        monkeypatch.setattr(process_identity, "time", SimpleNamespace(monotonic=lambda now_s=now_s: now_s))
        assert not alias_moves._is_dead(living)


@pytest.mark.slow
def test_a_ticket_that_was_taken_for_dead_moves_nothing(versions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alias_moves.move_champion(1, "first")
    monkeypatch.setattr(alias_moves, "_wait_for_turn", lambda ticket: move_tickets.close(ticket, "abandoned"))
    with pytest.raises(alias_moves.ChampionChangedError, match=r"move 2 was set to abandoned by another process, .*; compare"):
        alias_moves.move_champion(2, "slept", expected=1)
    assert (number_at("champion"), alias_moves.history()[-1].state) == (1, "abandoned")


@pytest.mark.slow
def test_only_the_lowest_ticket_behind_a_dead_move_finishes_it(versions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alias_moves.move_champion(1, "first")
    dead = draw_ticket(2, is_alive=False)
    move_tickets.begin(dead, 1)
    near, far = draw_ticket(3), draw_ticket(4)

    def stop(seconds: float) -> None:
        raise InterruptedError

    with monkeypatch.context() as waiting:
        waiting.setattr(alias_moves.time, "sleep", stop)
        with pytest.raises(InterruptedError):
            alias_moves._wait_for_turn(far)
    assert alias_moves.repair() == []
    assert (number_at("champion"), move_tickets.read(dead).state) == (1, "moving"), "want it left to the nearer one"
    alias_moves._wait_for_turn(near)
    assert (number_at("champion"), move_tickets.read(dead).state) == (2, "done")


@pytest.mark.slow
def test_a_dead_move_that_somebody_finished_meanwhile_is_not_written_again(
    versions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = draw_ticket(2, is_alive=False)
    move_tickets.begin(dead, None)
    outdated = [move_tickets.read(dead)]
    move_tickets.close(dead, "done")
    alias_moves.move_champion(3, "better", check=False)
    views = iter([outdated, []])
    monkeypatch.setattr(move_tickets, "open_before", lambda ticket: next(views))
    alias_moves._wait_for_turn(draw_ticket(4))
    assert number_at("champion") == 3


@pytest.mark.slow
def test_a_repair_is_no_part_of_the_history(versions: int) -> None:
    dead = draw_ticket(2, is_alive=False)
    move_tickets.begin(dead, None)
    assert [move.number for move in alias_moves.repair()] == [dead]
    assert alias_moves.repair() == []
    assert [(move.number, move.state) for move in alias_moves.history()] == [(dead, "done")]
    assert alias_moves.move_champion(3, "better", expected=2).before == 2


@pytest.mark.slow
@pytest.mark.parametrize("is_refused", [False, True])
def test_promoting_a_champion_that_was_set_by_hand(versions: int, tmp_path: Path, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(alias_moves.ChampionChangedError):
            alias_moves.move_champion(3, "better than 2", expected=2)
    mlflow_client.client().set_registered_model_alias(registry.MODEL_NAME, "champion", "1")
    outcome = promote.promote(registry.get_version(1), tmp_path, tmp_path)
    assert (outcome.decision.reason, outcome.move) == ("it is the champion already", None)
    alias_moves.move_champion(2, "measured", expected=1)
    with pytest.raises(alias_moves.ChampionChangedError):
        alias_moves.move_champion(3, "better than 1", expected=1)
    outcome = promote.promote(registry.get_version(2), tmp_path, tmp_path)
    assert outcome.decision.reason == "it is the champion already: measured"
    assert registry.get_version(2).tags[promote.REASON_TAG] == "measured"


@pytest.mark.slow
def test_a_champion_whose_promotion_was_killed_after_the_move_has_its_measurements(
    versions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = (Measurement(name, {"local": [number < n for number in range(100)]}) for name, n in (("new", 50), ("old", 10)))
    decision = replace(decide(new, old, GateSettings(), is_first=True), reason="better", conditions_key="conditions")
    monkeypatch.setattr(promote, "compare_with_champion", lambda *arguments: decision)
    move_champion = alias_moves.move_champion

    def move_and_die(*arguments: Any, **options: Any) -> None:
        move_champion(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(alias_moves, "move_champion", move_and_die)
        with pytest.raises(KeyboardInterrupt):
            promote.promote(registry.get_version(2), tmp_path, tmp_path)
    assert number_at("champion") == 2
    assert promote.promote(registry.get_version(2), tmp_path, tmp_path).decision.reason == "it is the champion already: better"
    tags = registry.get_version(2).tags
    assert (tags[promote.TASKS_TAG], tags[promote.CONDITIONS_TAG], tags[promote.STATE_TAG]) == ("local", "conditions", "promoted")
    assert json.loads(tags[promote.TABLE_TAG]) == [["overall", 100, 0.1, 0.5], ["local", 100, 0.1, 0.5]]


@pytest.mark.slow
def test_a_promotion_that_was_killed_before_the_move_is_still_to_be_decided(
    versions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.set_version_tags(2, {promote.STATE_TAG: promote.PENDING})
    monkeypatch.setattr(promote, "compare_with_champion", lambda *arguments: Decision(True, "better", ()))

    def die(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(alias_moves, "move_champion", die)
    with pytest.raises(KeyboardInterrupt):
        promote.promote(registry.get_version(2), tmp_path, tmp_path)
    assert registry.get_version(2).tags[promote.STATE_TAG] == promote.PENDING


@pytest.mark.slow
def test_a_rollback_to_a_version_without_files_moves_nothing(versions: int) -> None:
    alias_moves.move_champion(1, "first")
    alias_moves.move_champion(2, "better", expected=1)
    with pytest.raises(registry.RegistryError, match=r"with readable files, got 1, so version 2 stays champion .*--to"):
        promote.roll_back()
    assert (number_at("champion"), number_at("previous")) == (2, 1)
    assert len(alias_moves.history()) == 2


@pytest.mark.slow
def test_rollback_goes_to_the_previous_champion_and_back(versions: int, readable_files: None) -> None:
    alias_moves.move_champion(1, "first")
    with pytest.raises(registry.RegistryError, match=r"got no alias previous\); name a version with --to"):
        promote.roll_back()
    alias_moves.move_champion(2, "better", expected=1)
    assert promote.roll_back().champion == 1
    assert (number_at("champion"), number_at("previous")) == (1, 2)
    assert promote.roll_back(to=3, reason="tried").reason == "tried"
    assert (number_at("champion"), number_at("previous")) == (3, 1)
    assert [move.kind for move in alias_moves.history()] == ["promotion", "promotion", "rollback", "rollback"]


def test_without_a_champion_there_is_nothing_to_go_back_from(versions: int) -> None:
    with pytest.raises(registry.RegistryError, match="want a champion to roll back from, got none; name a version with --to"):
        promote.roll_back()


@pytest.mark.parametrize(
    ("code", "message", "is_conflict"),
    [
        (TEMPORARILY_UNAVAILABLE, "(sqlite3.OperationalError) database is locked", True),
        (TEMPORARILY_UNAVAILABLE, "(psycopg2.errors.DeadlockDetected) deadlock detected", True),
        (TEMPORARILY_UNAVAILABLE, "(psycopg2.errors.SerializationFailure) could not serialize access due to concurrent", True),
        (
            TEMPORARILY_UNAVAILABLE,
            "(psycopg2.OperationalError) connection failed: FATAL: sorry, too many clients already",
            True,
        ),
        (BAD_REQUEST, '(psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint "alias_pk"', True),
        (BAD_REQUEST, "(sqlite3.IntegrityError) UNIQUE constraint failed: registered_model_aliases.name", True),
        (INTERNAL_ERROR, "Model Version creation error (name=emuedit-editor-moves). Giving up after 3 attempts.", True),
        (INTERNAL_ERROR, "API request failed: Max retries exceeded (Caused by too many 503 error responses)", True),
        (INTERNAL_ERROR, "API request failed: Max retries exceeded (Caused by too many 429 error responses)", True),
        (INTERNAL_ERROR, "API request failed: Max retries exceeded (Caused by too many 504 error responses)", False),
        (TEMPORARILY_UNAVAILABLE, "(psycopg2.OperationalError) server closed the connection unexpectedly", False),
        (BAD_REQUEST, "(psycopg2.errors.UndefinedTable) relation model_versions does not exist", False),
        (RESOURCE_ALREADY_EXISTS, "Registered Model (name=x) already exists. Error: unique constraint", False),
    ],
)
def test_only_errors_after_which_nothing_was_written_are_retried(
    code: int, message: str, is_conflict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move_tickets.time, "sleep", lambda seconds: None)
    errors = [MlflowException(message, code)] * 2

    def call() -> str:
        if errors:
            raise errors.pop()
        return "answer"

    if is_conflict:
        assert move_tickets.retry(call) == "answer"
    else:
        with pytest.raises(MlflowException):
            move_tickets.retry(call)
        assert len(errors) == 1


def test_a_conflict_that_does_not_end_is_raised_after_twenty_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(move_tickets.time, "sleep", pauses.append)
    calls: list[None] = []

    def call() -> None:
        calls.append(None)
        raise MlflowException("database is locked", TEMPORARILY_UNAVAILABLE)

    with pytest.raises(MlflowException, match="database is locked"):
        move_tickets.retry(call)
    assert (len(calls), len(pauses)) == (20, 19)
