import json
from pathlib import Path
from typing import Any

import pytest

from emuedit.cli import main
from emuedit.data.publish import publish, scratch_folder
from emuedit.operations import ledger_commands, yield_ledger
from emuedit.operations.yield_ledger import Ledger, LedgerSettings
from emuedit.tracking import runs

COUNTS: dict[str, dict[str, int]] = {
    "captions": {"kept": 90},
    "instructions": {
        "kept": 130, "kept_add": 50, "kept_add_detect": 80, "dropped": 60, "dropped_refused": 60, "dropped_add_refused": 30,
        "dropped_add_full": 20, "dropped_add_detect_refused": 10,
    },
    "pairs": {"pairs": 150, "pairs_add": 50, "pairs_add_detect": 100, "dropped": 7, "dropped_not_detected": 7},
    "dataset": {
        "pairs": 160, "kept": 90, "l1_max": 45, "add.pairs": 60, "add.kept": 20, "add.kept_instructions": 20, "add.reassigned": 3,
        "add.l1_max": 35, "add.not_best": 5, "add_detect.pairs": 100, "add_detect.kept": 70, "add_detect.l1_max": 10,
        "style.pairs": 0, "style.kept": 0,
    },
}  # fmt: skip
SECONDS = {"captions": 10.0, "instructions": 100.0, "pairs": 320.0, "router": 16.0, "dataset": 16.0, "train": 9999.0}


def make_ledger(seconds: dict[str, float] = SECONDS, **settings: Any) -> Ledger:
    return yield_ledger.make(COUNTS, ("add", "add_detect"), seconds, LedgerSettings(**settings))


def publish_workspace(root: Path, **params: Any) -> None:
    for stage, folder in yield_ledger.FOLDERS.items():
        publish(scratch_folder(root, stage, "k"), root / folder, stage, {"tasks": ["add", "add_detect"]}, COUNTS[stage])


def test_every_step_of_a_task_is_counted_and_a_longer_name_is_another_task() -> None:
    rows = {row.task: row for row in make_ledger().rows}
    assert list(rows) == ["add", "add_detect", "style", "all"]
    assert [(row.captions, row.instructions, row.candidates, row.kept) for row in rows.values()] == [
        (100, 50, 60, 20), (90, 80, 100, 70), (0, 0, 0, 0), (190, 130, 160, 90),
    ]  # fmt: skip
    assert rows["add"].reasons == {
        "dataset.l1_max": 35, "instructions.refused": 30, "instructions.full": 20, "dataset.not_best": 5,
    }  # fmt: skip
    assert list(rows["add"].reasons) == ["dataset.l1_max", "instructions.refused", "instructions.full", "dataset.not_best"]
    assert rows["all"].reasons["pairs.not_detected"] == 7
    assert rows["all"].reasons["dataset.l1_max"] == 45


def test_seconds_are_divided_among_tasks_and_give_a_price() -> None:
    rows = {row.task: row for row in make_ledger(price_per_hour=3.6).rows}
    want_s = 110 * 100 / 190 + 352 * 60 / 160
    assert rows["add"].seconds == pytest.approx(want_s, abs=1e-3)
    assert rows["add"].cost_per_kept == pytest.approx(want_s * 0.001 / 20)
    assert rows["all"].seconds == pytest.approx(462)
    assert sum(rows[task].seconds or 0 for task in ("add", "add_detect", "style")) == pytest.approx(462, abs=0.01)
    assert rows["style"].cost_per_kept is None
    assert make_ledger().rows[0].cost_per_kept is None  # without a price


def test_seconds_of_a_part_of_the_stages_give_none() -> None:
    ledger = make_ledger({"instructions": 3.0, "dataset": 1.0}, price_per_hour=1.0)
    assert {row.seconds for row in ledger.rows} == {None}
    assert ledger.seconds == {"instructions": 3.0, "dataset": 1.0}


def test_a_ledger_is_read_as_it_was_written_and_gives_metrics() -> None:
    ledger = make_ledger(price_per_hour=2.0)
    assert Ledger.from_dict(json.loads(json.dumps(ledger.to_dict()))) == ledger
    metrics = dict(runs.flatten(ledger.metrics()))
    assert metrics["yield.add.captions"] == 100
    assert metrics["yield.all.kept"] == 90
    assert "yield.style.cost_per_kept" not in metrics


def test_a_workspace_is_read_with_its_price(tmp_path: Path) -> None:
    assert yield_ledger.read(tmp_path, {}) is None
    publish_workspace(tmp_path)
    (tmp_path / "params.yaml").write_text("ledger: {price_per_hour: 3.6, currency: EUR}\n")
    assert yield_ledger.read(tmp_path, SECONDS) == make_ledger(price_per_hour=3.6, currency="EUR")


def test_the_table_names_the_task_its_yield_price_and_reasons() -> None:
    line = next(
        line for line in ledger_commands.format_ledger(make_ledger(price_per_hour=3.6)).splitlines() if line.startswith("add ")
    )
    assert line.split()[:8] == ["add", "100", "50", "60", "20", "33%", "190", "0.0095"]
    assert line.endswith("dataset.l1_max 35, instructions.refused 30, instructions.full 20")


def test_the_command_shows_the_workspace_where_no_run_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["ledger"]) == 0
    assert "No pairs were filtered here yet" in capsys.readouterr().out
    publish_workspace(tmp_path)
    assert main(["ledger"]) == 0
    assert "no run has a ledger yet" in capsys.readouterr().out
    assert main(["ledger", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ledger"]["rows"][0]["kept"], answer["runs"]) == (20, [])
    assert not (tmp_path / "mlflow.db").exists()
