"""The card of a registered version: rendered from its tags, and written again after each decision."""

from pathlib import Path

import pytest

from emuedit.promotion import promote, version_card
from emuedit.tracking import alias_moves, mlflow_client, registry, runs
from emuedit.tracking.registry import ModelVersion

PARAMS = {
    "world": {"name": "toy", "base_model": "stabilityai/base", "llm": "https://llm.example.org/v1#model", "base_editor": None},
    "dataset": {"licences": {"base_model": "CreativeML Open RAIL-M"}},
}
TABLE = {
    "identity": {"overall": 0.1, "local": None, "remove": 0.1},
    "emuedit": {"overall": 0.6, "local": 0.7, "remove": 0.5},
    "true_task": {"overall": 0.9},
}


@pytest.fixture
def tags() -> dict[str, str]:
    return {
        **version_card.make_tags(TABLE, "emuedit", PARAMS), "git.commit": "abcd" * 10, "git.dirty": "false",
        "reason": "data: new", "parent": "models:/emuedit-editor/2", "edit_success": "0.6000", "gate.state": "promoted",
        "gate.reason": "edit success 0.600 against 0.500", "dvc.data/dataset": "dddd.dir", "dvc.models/editor": "eeee.dir",
    }  # fmt: skip


def test_the_card_has_scores_decision_origin_data_and_licences(tags: dict[str, str]) -> None:
    card = version_card.render(ModelVersion(3, "run3", tags))
    lines = card.splitlines()
    assert lines[0] == "# models:/emuedit-editor/3"
    assert "| run | `run3` |" in lines
    assert f"| commit | `{'abcd' * 10}`, clean |" in lines
    assert "| parent | `models:/emuedit-editor/2` |" in lines
    assert "| gate | promoted: edit success 0.600 against 0.500 |" in lines
    assert "| task | emuedit | identity |" in lines, "without systems that are not served"
    assert [line for line in lines if line.startswith(("| overall", "| local", "| remove"))] == [
        "| overall | 0.600 | 0.100 |",
        "| local | 0.700 | - |",
        "| remove | 0.500 | 0.100 |",
    ]
    assert "- `data/dataset`: `dddd.dir`" in lines
    assert "| base_model | `stabilityai/base` | CreativeML Open RAIL-M |" in lines
    assert "| llm | `https://llm.example.org/v1#model` | not stated |" in lines
    assert "base_editor" not in card
    assert "## Intended use" in lines
    assert "{" not in card


def test_scores_have_a_standard_error_if_the_number_of_edits_is_known(tags: dict[str, str]) -> None:
    table = {
        "emuedit": {"overall": 0.6, "local": 0.7, "remove": 0.5, "contour": 0.5, "new_words": 0.4},
        "identity": {"overall": None},
    }
    params = PARAMS | {"judged": {"n_edits": 16}, "evaluation": {"n_edits": 1}}
    lines = version_card.render(
        ModelVersion(3, "run3", tags | version_card.make_tags(table, "emuedit", params, "judged"))
    ).splitlines()
    rows = [line for line in lines if line.startswith(("| overall", "| local", "| remove", "| contour", "| new_words"))]
    assert rows == [
        "| overall | 0.600 ± 0.077 | - |",  # sqrt(.66 * .34 / 20 + .5 * .5 / 20) / 2, without `contour`, which is not trained
        "| contour | 0.500 ± 0.112 | - |",
        "| local | 0.700 ± 0.106 | - |",
        "| new_words | 0.400 | - |",
        "| remove | 0.500 ± 0.112 | - |",
    ]
    assert any("16 edits per task" in line for line in lines)
    assert "edits per task" not in version_card.render(ModelVersion(3, "run3", tags))


def test_each_task_has_the_standard_error_of_its_number_of_edits(tags: dict[str, str]) -> None:
    params = PARAMS | {"evaluation": {"n_edits": None}}
    scores = version_card.make_tags(TABLE, "emuedit", params, measured={"local": 12, "remove": 46})
    lines = version_card.render(ModelVersion(3, "run3", tags | scores)).splitlines()
    assert [line for line in lines if line.startswith(("| overall", "| local", "| remove"))] == [
        "| overall | 0.600 ± 0.069 | 0.100 ± 0.048 |",  # sqrt(.65 * .35 / 16 + .5 * .5 / 50) / 2, and of `remove` alone
        "| local | 0.700 ± 0.119 | - |",
        "| remove | 0.500 ± 0.071 | 0.100 ± 0.048 |",
    ]
    assert any("Edits: 12 of local, 46 of remove; ± is the standard error" in line for line in lines)


def test_a_task_without_successes_has_a_standard_error(tags: dict[str, str]) -> None:
    table = {"emuedit": {"overall": 0.5, "local": 0.0, "remove": 1.0}}
    scores = version_card.make_tags(table, "emuedit", PARAMS | {"evaluation": {"n_edits": 32}})
    lines = version_card.render(ModelVersion(3, "run3", tags | scores)).splitlines()
    assert {"| local | 0.000 ± 0.038 |", "| remove | 1.000 ± 0.038 |"} <= set(lines)  # sqrt(2 / 36 * 34 / 36 / 36)


def test_the_summary_is_one_line(tags: dict[str, str]) -> None:
    assert version_card.summarise(ModelVersion(3, "run3", tags)) == (
        "Edit success 0.6000 in its own evaluation. Gate: promoted: edit success 0.600 against 0.500. Commit abcdabcd, "
        "card: `cards/model.md` of its run."
    )


def test_a_success_that_a_backfill_measured_is_not_called_that_of_its_own_evaluation(tags: dict[str, str]) -> None:
    backfilled = tags | {version_card.SUCCESS_TAG: "0.5500", version_card.SUCCESS_CONDITIONS_TAG: "conditions"}
    summary = version_card.summarise(ModelVersion(3, "run3", backfilled))
    assert summary.startswith("Edit success 0.5500 measured by the last backfill. Gate: ")


def test_uncommitted_changes_are_listed(tags: dict[str, str]) -> None:
    changed = tags | {"git.dirty": "true", "git.changes": "params.yaml, emuedit/tasks.py"}
    assert "with uncommitted changes: params.yaml, emuedit/tasks.py" in version_card.render(ModelVersion(3, "run3", changed))


def test_a_version_without_these_tags_has_a_card_too() -> None:
    card = version_card.render(ModelVersion(1, "run1", {version_card.SCORES_TAG: '{"emuedit": {"ov'}))
    assert "None were recorded." in card
    assert "| commit | none |" in card


@pytest.mark.slow
def test_a_decision_writes_card_and_description(store: str, tags: dict[str, str]) -> None:
    client, run_id = mlflow_client.client(), runs.start_run("retrain", "here")
    client.create_registered_model(registry.MODEL_NAME)
    client.create_model_version(registry.MODEL_NAME, "nowhere/1", run_id=run_id, tags=tags | {"gate.state": "pending"})
    version_card.update(1)
    assert "| gate | pending: " in str(runs.read_text(run_id, version_card.CARD))
    alias_moves.move_champion(1, "forced by hand")
    promote.promote(registry.get_version(1), Path(), Path())
    assert "| gate | promoted: forced by hand |" in str(runs.read_text(run_id, version_card.CARD))
    description = client.get_model_version(registry.MODEL_NAME, "1").description
    assert description.startswith("Edit success 0.6000 in its own evaluation. Gate: promoted: forced by hand.")


@pytest.mark.slow
def test_a_card_that_cannot_be_written_stops_nothing(versions: int, capsys: pytest.CaptureFixture[str]) -> None:
    version_card.update(99)
    assert "== the card of version 99 was not written: want a version of emuedit-editor, got 99" in capsys.readouterr().out
    version_card.update(1)
    assert capsys.readouterr().out == "", "a version without a run has only a description"
