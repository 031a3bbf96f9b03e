"""A promotion compares again if the champion changed during the comparison, but not forever."""

from pathlib import Path
from typing import Any

import pytest

from emuedit.promotion import promote
from emuedit.promotion.gate import Decision
from emuedit.tracking import alias_moves, move_tickets, registry
from emuedit.tracking.registry import ModelVersion

CHANGED = "the champion changed from 1 to 2 while version 3 was compared; compare again"


class Registry:
    """Replaces the registry: the champion changes during the first `n_changes` comparisons."""

    def __init__(self, n_changes: int, accepts: bool) -> None:
        self.n_changes, self.accepts = n_changes, accepts
        self.calls, self.tags = list[str](), dict[str, str]()
        self.champion: ModelVersion | None = None

    def repair(self) -> None:
        self.calls.append("repair")

    def compare(self, *arguments: Any) -> Decision:
        self.calls.append("compare")
        self.champion = arguments[2]
        return Decision(self.accepts, "better" if self.accepts else "worse")

    def check_champion(self, *arguments: Any, **options: Any) -> None:
        if self.calls.count("compare") <= self.n_changes:
            raise alias_moves.ChampionChangedError(CHANGED)

    def set_version_tags(self, number: int, tags: dict[str, str]) -> None:
        self.tags |= tags


def install(monkeypatch: pytest.MonkeyPatch, n_changes: int, accepts: bool = True) -> Registry:
    fake = Registry(n_changes, accepts)
    monkeypatch.setattr(alias_moves, "repair", fake.repair)
    monkeypatch.setattr(alias_moves, "move_champion", fake.check_champion)
    monkeypatch.setattr(alias_moves, "check_champion", fake.check_champion)
    monkeypatch.setattr(promote, "compare_with_champion", fake.compare)
    monkeypatch.setattr(promote.version_card, "update", lambda number: None)
    monkeypatch.setattr(registry, "version_at", lambda alias: None)
    monkeypatch.setattr(registry, "set_version_tags", fake.set_version_tags)
    return fake


def move_to_3(kind: str) -> move_tickets.Move:
    """A completed move to version 3, requested at 100,000 ms."""
    return move_tickets.Move(7, "done", kind, 3, None, "better", False, "user@host", 100_000, 100_000)


def promote_version() -> promote.PromotionOutcome:
    return promote.promote(ModelVersion(3, "run", {}), Path(), Path())


@pytest.mark.parametrize("n_changes", [0, 1, 4])
def test_a_changed_champion_is_repaired_and_compared_again(
    n_changes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = install(monkeypatch, n_changes)
    assert promote_version().decision == Decision(True, "better")
    assert fake.calls == ["repair", "compare"] * (n_changes + 1)
    assert capsys.readouterr().out == f"promote: {CHANGED}\n" * n_changes
    assert fake.tags[promote.STATE_TAG] == promote.PROMOTED


def test_a_refusal_stands_only_against_the_present_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, 1, accepts=False)
    assert promote_version().decision == Decision(False, "worse")
    assert fake.calls == ["repair", "compare"] * 2
    assert fake.tags[promote.STATE_TAG] == promote.REFUSED


@pytest.mark.parametrize(("champion", "expected"), [(None, 5), (4, 5), (4, None)])
def test_another_champion_is_noticed(champion: int | None, expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alias_moves, "version_at", lambda alias: ModelVersion(champion, "run", {}) if champion else None)
    alias_moves.check_champion(6, expected=champion)
    with pytest.raises(alias_moves.ChampionChangedError, match=f"from {expected or 'none'} to {champion or 'none'} while"):
        alias_moves.check_champion(6, expected=expected)


def test_the_fifth_change_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake = install(monkeypatch, 5)
    with pytest.raises(alias_moves.ChampionChangedError, match="compare again"):
        promote_version()
    assert fake.calls == ["repair", "compare"] * 5
    assert capsys.readouterr().out == f"promote: {CHANGED}\n" * 4
    assert promote.STATE_TAG not in fake.tags, "the version is still to be decided"


def test_an_error_of_the_repair_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, 0)

    def repair() -> None:
        raise alias_moves.ChampionChangedError("move 4 was set to abandoned by another process")

    monkeypatch.setattr(alias_moves, "repair", repair)
    with pytest.raises(alias_moves.ChampionChangedError, match="move 4"):
        promote_version()
    assert fake.calls == []


def test_without_a_champion_the_previous_one_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version was deleted in MLflow, and any version that was better than no edit became the champion."""
    fake, previous = install(monkeypatch, 0), ModelVersion(1, "run", {})
    monkeypatch.setattr(registry, "version_at", lambda alias: previous if alias == "previous" else None)
    promote_version()
    assert fake.champion == previous
    assert fake.tags[promote.AGAINST_TAG] == "1"
    monkeypatch.setattr(registry, "version_at", lambda alias: ModelVersion(3, "run", {}) if alias == "previous" else None)
    promote_version()
    assert fake.champion is None, "no version is compared with itself"


@pytest.mark.parametrize("force_reason", ["", "a person wants it"])
def test_a_version_that_was_replaced_before_its_decision_was_recorded_is_not_promoted_again(
    force_reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its promotion was killed after the move; a person rolled back, and the next retrain found it without a decision."""
    fake = install(monkeypatch, 0)
    monkeypatch.setattr(alias_moves, "history", lambda: [move_to_3("promotion")])
    pending = ModelVersion(3, "run", {promote.STATE_TAG: promote.PENDING})
    outcome = promote.promote(pending, Path(), Path(), force_reason=force_reason)
    assert outcome.decision.promote == bool(force_reason)
    assert fake.tags[promote.STATE_TAG] == promote.PROMOTED
    assert ("compare" in fake.calls) == bool(force_reason)
    if not force_reason:
        assert fake.tags[promote.REASON_TAG] == "better; it was the champion, and was replaced"


def test_a_version_that_was_champion_by_a_rollback_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, 0)
    monkeypatch.setattr(alias_moves, "history", lambda: [move_to_3("rollback")])
    assert promote.promote(ModelVersion(3, "run", {promote.STATE_TAG: promote.PENDING}), Path(), Path()).decision.promote
    assert "compare" in fake.calls


@pytest.mark.parametrize(("created_ms", "is_measured"), [(99_000, False), (101_000, False), (200_000, True)])
def test_a_move_of_a_deleted_version_of_the_same_number_is_no_promotion(
    created_ms: int, is_measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registered model was deleted in MLflow and made anew: version 3 got the promotion of the earlier version 3."""
    fake = install(monkeypatch, 0, accepts=False)
    monkeypatch.setattr(alias_moves, "history", lambda: [move_to_3("promotion")])
    version = ModelVersion(3, "run", {promote.STATE_TAG: promote.PENDING}, created_ms=created_ms)
    assert promote.promote(version, Path(), Path()).decision.reason.startswith("worse" if is_measured else "better; it was")
    assert fake.tags[promote.STATE_TAG] == (promote.REFUSED if is_measured else promote.PROMOTED)
    assert alias_moves.reason_of(version) == ("" if is_measured else "better")
