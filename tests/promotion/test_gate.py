"""The gate: better overall, no task lost, untouched pixels intact, not slower or larger, and never on other or fewer edits."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emuedit.config import ParamsError
from emuedit.promotion import promote
from emuedit.promotion.gate import GateError, Measurement, decide
from emuedit.promotion.gate_settings import GateSettings
from emuedit.promotion.paired_bootstrap import compare_paired

SETTINGS = GateSettings()
N = 64


def outcomes(share: float, seed: int = 0) -> list[bool]:
    """N outcomes with this share of successes; with one seed, those of a smaller share are among those of a larger one."""
    order = np.random.default_rng(seed).permutation(N)
    return [bool(place < round(share * N)) for place in order]


def measurement(name: str = "editor", **shares: float) -> Measurement:
    tasks = shares or {"local": 0.5, "remove": 0.5}
    return Measurement(name, {task: outcomes(share) for task, share in tasks.items()}, conditions_key="same")


def test_a_better_challenger_is_promoted_with_figures() -> None:
    decision = decide(measurement(local=0.75, remove=0.75), measurement("champion", local=0.5, remove=0.5), SETTINGS)
    assert decision.promote
    assert decision.reason.startswith("edit success 0.750 against 0.500 of champion (+0.250, ")
    overall = decision.rows[0]
    assert (overall.name, overall.n, overall.champion, overall.challenger) == ("overall", 2 * N, 0.5, 0.75)
    assert overall.difference.low < 0.25 < overall.difference.high


def test_an_equal_challenger_is_refused_unless_not_worse_is_enough() -> None:
    equal = measurement(local=0.5, remove=0.5)
    refused = decide(equal, equal, SETTINGS)
    assert not refused.promote
    assert "better in only 0% of the resamples; 90% required" in refused.reason
    assert decide(equal, equal, GateSettings(epsilon=0.02)).promote


def test_a_gain_within_the_noise_is_refused() -> None:
    """Other edits succeed than before, and two more of them: no evidence of a better editor."""
    champion = Measurement("champion", {"local": outcomes(0.5, seed=1)}, conditions_key="same")
    challenger = Measurement("editor", {"local": outcomes(0.53, seed=2)}, conditions_key="same")
    decision = decide(challenger, champion, SETTINGS)
    assert decision.rows[0].challenger > decision.rows[0].champion
    assert not decision.promote


def test_a_worse_challenger_is_refused_even_within_epsilon_of_its_interval() -> None:
    decision = decide(measurement(local=0.4), measurement(local=0.5), GateSettings(epsilon=0.02))
    assert not decision.promote
    assert "not worse by more than 0.02" in decision.reason


def test_better_overall_but_one_task_lost_is_refused() -> None:
    champion = measurement("champion", local=0.3, remove=0.3, detect=0.8)
    challenger = measurement(local=0.9, remove=0.9, detect=0.2)
    decision = decide(challenger, champion, SETTINGS)
    assert not decision.promote
    assert "edit success of detect dropped by 0.594, more than the allowed 0.1" in decision.reason
    assert [row.name for row in decision.rows if row.objection] == ["detect"]
    assert "detect dropped" in decision.table()
    assert decide(challenger, champion, GateSettings(task_allowances={"detect": 0.7})).promote


def test_a_task_learned_by_inversion_does_not_count_overall_but_must_not_be_lost() -> None:
    champion = measurement("champion", local=0.3, contour=0.8)
    decision = decide(measurement(local=0.9, contour=0.1), champion, SETTINGS)
    assert decision.rows[0].challenger == pytest.approx(0.9, abs=0.01)
    assert "contour dropped" in decision.reason


def test_untouched_pixels_time_and_size_have_their_bounds() -> None:
    old = replace(measurement("champion", local=0.3), untouched={"local": [0.001, None]}, seconds_per_edit=1.0, size_bytes=100)
    new = replace(measurement(local=0.9), untouched={"local": [0.002, None]}, seconds_per_edit=1.4, size_bytes=140)
    assert decide(new, old, SETTINGS).promote
    for changes, words in {
        ("untouched", (("local", (0.02, None)),)): "pixels outside the edit change by 0.0200, the champion's by 0.0010",
        ("seconds_per_edit", 1.6): "an edit takes 1.60 times as long (allowed: 1.5)",
        ("size_bytes", 160): "the package is 1.60 times as large (allowed: 1.5)",
    }.items():
        value = dict(changes[1]) if isinstance(changes[1], tuple) else changes[1]
        decision = decide(replace(new, **{changes[0]: value}), old, SETTINGS)
        assert not decision.promote
        assert words in decision.reason


def test_untouched_pixels_are_compared_in_edits_that_both_editors_made() -> None:
    """A champion that refuses most instructions leaves their pixels alone; that is no standard for an editor that edits."""
    old = replace(measurement("champion", local=0.3), untouched={"local": [None, 0.03, None], "remove": [None]})
    new = replace(measurement(local=0.9), untouched={"local": [0.2, 0.03, 0.2], "remove": [0.5]})
    decision = decide(new, old, SETTINGS)
    assert decision.promote
    refused = "not measured of the champion (3 of 64 edits)"
    assert decision.outside == f"change by 0.0300, the champion's by 0.0300 in the 1 edit measured of both; {refused}"
    worse = decide(replace(new, untouched={"local": [None, 0.04, None]}), old, SETTINGS)
    assert not worse.promote
    assert worse.outside == "change by 0.0400, the champion's by 0.0300 in the 1 edit measured of both"
    assert f"pixels outside the edit {worse.outside}; allowed increase" in worse.reason
    decision = decide(replace(new, untouched={"local": [0.4, None, None]}), old, SETTINGS)
    assert decision.outside == "not measured of the champion (1 of 64 edits)"
    gaps = {"refused, or with another predicted task": 2}
    decision = decide(replace(new, untouched={"local": [0.4, None, None]}, untouched_gaps=gaps), old, SETTINGS)
    assert decision.outside == (
        "not measured: refused, or with another predicted task (2 of 64 edits); not measured of the champion (1 of 64 edits)"
    )


def test_each_task_has_the_same_weight_in_the_change_of_untouched_pixels() -> None:
    old = replace(measurement("champion"), untouched={"local": [0.0] * 10, "remove": [0.0]})
    new = replace(measurement(local=0.9, remove=0.9), untouched={"local": [0.0] * 10, "remove": [0.1]})
    decision = decide(new, old, SETTINGS)
    assert decision.outside == "change by 0.0500, the champion's by 0.0000 in the 11 edits measured of both"
    assert not decision.promote


def test_untouched_pixels_that_were_not_measured_are_reported_with_the_reason() -> None:
    gaps = {"without a reference result": 60, "with a reference result that leaves less than 5% of the pixels unchanged": 4}
    old = replace(measurement("champion", local=0.3), untouched={"local": [None] * N}, untouched_gaps=gaps)
    new = replace(measurement(local=0.9), untouched={"local": [None] * N}, untouched_gaps=gaps)
    decision = decide(new, old, SETTINGS)
    assert decision.promote
    reason = "not measured: without a reference result (60 of 64 edits), with a reference result that leaves less than 5% of the "
    assert decision.reason.endswith(f"all other criteria met; pixels outside the edit: {reason}pixels unchanged (4 of 64 edits)")
    assert f"pixels outside the edit: {reason}" in decision.table().splitlines()[-1]
    assert decision.to_dict()["outside"].startswith("not measured")
    refused = decide(replace(old, name="editor"), replace(new, name="champion"), SETTINGS)
    assert "; pixels outside the edit: not measured" in refused.reason


def test_the_table_has_the_change_of_untouched_pixels_and_the_number_of_gaps() -> None:
    old = replace(measurement("champion", local=0.3), untouched={"local": [0.001, None]})
    new = replace(measurement(local=0.9), untouched={"local": [0.002, None]}, untouched_gaps={"without a reference result": 1})
    line = decide(new, old, SETTINGS).table().splitlines()[-1]
    assert line == (
        "pixels outside the edit: change by 0.0020, the champion's by 0.0010 in the 1 edit measured of both; "
        "not measured: without a reference result (1 of 64 edits)"
    )


def test_a_first_model_must_only_beat_doing_nothing() -> None:
    nothing = replace(measurement("the identity baseline", local=0.0, remove=0.3), untouched={"local": [0.0]})
    new = replace(measurement(local=0.5, remove=0.1), untouched={"local": [0.3]})
    assert decide(new, nothing, SETTINGS, is_first=True).promote
    assert not decide(nothing, nothing, SETTINGS, is_first=True).promote


def test_measurements_of_other_edits_are_not_compared() -> None:
    """A champion of .600 on two tasks once lost to .650 on one of them alone."""
    with pytest.raises(GateError, match="want both editors measured on the same edits"):
        decide(replace(measurement(), conditions_key="other"), measurement(), SETTINGS)
    with pytest.raises(GateError, match="want the same edits of both editors"):
        decide(measurement(remove=0.65), measurement(local=0.6, remove=0.6), SETTINGS)
    with pytest.raises(GateError, match=r"want at least promotion.min_edits = 65 edits of .*'local': 64.* add rows to edits.csv"):
        decide(measurement(), measurement(), GateSettings(min_edits=65))
    with pytest.raises(GateError, match="on which editors are trained"):
        decide(measurement(contour=0.5), measurement(contour=0.4), SETTINGS)


def test_the_interval_of_the_bootstrap_is_that_of_the_normal_distribution() -> None:
    """For many edits: mean +- 1.645 standard errors at 90 %."""
    differences = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 2000).tolist()
    result = compare_paired({"local": differences}, ["local"], 0.9, 4000)
    error = np.std(differences) / np.sqrt(2000)
    assert result.high - result.mean == pytest.approx(1.645 * error, rel=0.05)
    assert result.mean - result.low == pytest.approx(1.645 * error, rel=0.05)


@pytest.mark.parametrize("epsilon", [0.0, 0.02])
def test_ties_are_no_wins_for_any_number_of_edits(epsilon: float) -> None:
    """20 edits of each of 5 tasks: a mean of floats such as (0.05 + 0.05 - 0.1) / 5 is not zero, but a sum of integers is."""
    rng = np.random.default_rng(3)
    tasks, resamples = ["local", "remove", "add", "texture", "background"], 4000
    for _ in range(20):
        counts = {task: rng.choice([-1, 0, 1], 20, p=[0.2, 0.55, 0.25]) for task in tasks}
        differences = {task: values.astype(float).tolist() for task, values in counts.items()}
        result = compare_paired(differences, tasks, 0.9, resamples, threshold=-epsilon)
        draws = [np.random.default_rng(seed).integers(0, 20, (resamples, 20)) for seed in range(5)]
        sums = np.sum([counts[task][draw].sum(axis=1) for task, draw in zip(tasks, draws, strict=True)], axis=0)
        assert result.share_above == (sums > round(-epsilon * 100)).mean()
        assert result.mean == sum(values.sum() for values in counts.values()) / 100


def equal_editors(rng: np.random.Generator, drop: float = 0.0) -> tuple[Measurement, Measurement]:
    """Two editors with a success of 0.5 in 32 edits of nine tasks, which agree in 3 of 4 edits; `drop`: of `local`."""
    names = ("local", "texture", "background", "remove", "add", "detect", "segment", "sketch", "contour")
    old = {name: rng.random(32) < 0.5 for name in names}
    new = {name: np.where(rng.random(32) < 0.5, values, rng.random(32) < 0.5) for name, values in old.items()}
    new["local"] = new["local"] & (rng.random(32) >= 2 * drop)
    return tuple(  # type: ignore[return-value]
        Measurement("editor", {name: values.tolist() for name, values in success.items()}, conditions_key="same")
        for success in (new, old)
    )


@pytest.mark.slow
def test_the_tasks_of_equally_good_editors_seldom_prevent_a_promotion() -> None:
    """With the 90 % interval of each task, a third of them would."""
    rng, settings = np.random.default_rng(0), GateSettings(resamples=400)
    n_refused = n_below_zero = 0
    for _ in range(60):
        rows = decide(*equal_editors(rng), settings).rows[1:]
        n_refused += any(row.objection for row in rows)
        n_below_zero += any(-row.difference.mean > settings.task_allowance and row.difference.high < 0 for row in rows)
    assert n_below_zero > 0.2 * 60
    assert n_refused < 0.12 * 60


def test_the_loss_of_a_task_is_noticed_among_nine() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert "edit success of local dropped by 0." in decide(*equal_editors(rng, drop=0.5), GateSettings(resamples=400)).reason


def test_an_exact_tie_of_the_means_is_no_gain() -> None:
    """Gains of 1 and 2 and a loss of 3 of 10 edits: the mean of 0.1, 0.2 and -0.3 is 9e-18 in floats."""
    gains = {"local": 1, "remove": 2, "add": -3}
    counts = {task: [1.0 if gain > 0 else -1.0] * abs(gain) + [0.0] * (10 - abs(gain)) for task, gain in gains.items()}
    result = compare_paired(counts, list(gains), 0.9, 100)
    assert result.mean == 0
    success = {task: ([False] * 10, [True] * abs(gain) + [False] * (10 - abs(gain))) for task, gain in gains.items()}
    new = Measurement("new", {task: success[task][gain > 0] for task, gain in gains.items()}, conditions_key="same")
    old = Measurement("old", {task: success[task][gain < 0] for task, gain in gains.items()}, conditions_key="same")
    settings = GateSettings(min_edits=1, confidence=0.501, task_allowance=1)
    assert not decide(new, old, settings).promote


def test_allowances_of_tasks_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    messages = {
        "{segment: 10.0}": "task_allowances.segment': Input should be less than or equal to 1",
        "{segment: -3}": "task_allowances.segment': Input should be greater than or equal to 0",
        "{segmnt: 0.5}": "got 'segmnt'; did you mean 'segment'",
    }
    for allowances, message in messages.items():
        file.write_text(f"promotion: {{task_allowances: {allowances}}}\n")
        with pytest.raises(ParamsError, match=re.escape(message)):
            promote.read_gate_settings(tmp_path)
    file.write_text("promotion: {task_allowances: {segment: 1, contour: 0.2}}\n")
    assert promote.read_gate_settings(tmp_path).allowance("contour") == 0.2, "learned by inversion"


def test_tasks_weigh_the_same_whatever_their_number_of_edits() -> None:
    result = compare_paired({"local": [1.0] * 10, "remove": [0.0] * 1000}, ["local", "remove"], 0.9, 200)
    assert result.mean == 0.5
