import pytest

from flows.promotion_gate import GateError, decide, read_scores

IDENTITY = {"overall": 0.2, "local": 0.0}


@pytest.mark.parametrize(
    ("score", "champion", "promote", "reason"),
    [
        (0.5, None, True, "no champion yet"),
        (0.2, None, False, "not above 0.200, that of doing nothing"),
        (0.1, None, False, "not above 0.200, that of doing nothing"),
        (0.5, {"overall": 0.4}, True, "above 0.400, that of the champion"),
        (0.4, {"overall": 0.4}, False, "not above 0.400, that of the champion"),
        (0.3, {"overall": 0.4}, False, "not above 0.400, that of the champion"),
        (0.15, {"overall": 0.1}, False, "doing nothing"),
        (0.5, {}, True, "never measured"),
    ],
)
def test_the_decision_and_its_reason(score: float, champion: dict[str, float | None] | None, promote: bool, reason: str) -> None:
    decision = decide({"overall": score}, IDENTITY, champion)
    assert decision.promote is promote
    assert reason in decision.reason
    assert f"{score:.3f}" in decision.reason


@pytest.mark.parametrize("row", [{}, {"overall": None}, {"overall": float("nan")}])
def test_an_unmeasured_editor_is_no_candidate(row: dict[str, float | None]) -> None:
    with pytest.raises(GateError, match="overall of the candidate"):
        decide(row, IDENTITY, None)
    with pytest.raises(GateError, match="overall of the identity"):
        decide({"overall": 0.5}, row, None)


def test_the_scores_of_a_system() -> None:
    assert read_scores({"edit_success": {"identity": IDENTITY}}, "identity") == IDENTITY
    with pytest.raises(GateError, match=r"want edit_success.emuedit in the metrics, got \['identity'\]"):
        read_scores({"edit_success": {"identity": IDENTITY}}, "emuedit")
    with pytest.raises(GateError, match=r"got \['l1'\]"):
        read_scores({"l1": 1}, "emuedit")
