"""The flows about versions, called as functions; Prefect's own machinery is tested in `test_pipeline`."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emuedit.promotion import promote as promotion
from emuedit.promotion.gate import Measurement
from emuedit.tracking import alias_moves, mlflow_client, registry
from emuedit.tracking.registry import ModelVersion
from emuedit.tracking.service_errors import ServiceError
from flows import dvc_graph, model_flows
from flows.run_reason import complete_reason
from tests.databases import copy_database
from tests.flows.conftest import set_environment


@pytest.fixture(scope="session")
def store_with_champion(empty_store: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with two versions, of which the first is the champion, promoted at .6."""
    folder = tmp_path_factory.mktemp("champion")
    shutil.copy(empty_store, folder / "draft.db")
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, home)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/draft.db")
        client = mlflow_client.client()
        client.create_registered_model(registry.MODEL_NAME)
        for number in (1, 2):
            client.create_model_version(registry.MODEL_NAME, f"nowhere/{number}")
        table = json.dumps([["overall", 4, 0.4, 0.6], ["local", 4, 0.4, 0.6]])
        registry.set_version_tags(1, {promotion.TABLE_TAG: table, promotion.CONDITIONS_TAG: "now"})
        alias_moves.move_champion(1, "first")
    copy_database(folder / "draft.db", folder / "mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def promoted(store: str, store_with_champion: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Version 1 is the champion, promoted at .6; measured now, it has .5. Returns the deployments that were started."""
    shutil.copy(store_with_champion, store.removeprefix("sqlite:///"))

    def measure(version: ModelVersion, root: Path, tasks: Sequence[str] = ("local",), afresh: bool = False) -> Measurement:
        assert list(tasks) == ["local"]
        success = {1: [True, False], 2: [True, True]}[version.number]
        return Measurement(version.uri, {"local": success}, conditions_key="now")

    started: list[dict[str, Any]] = []

    def run_deployment(name: str, parameters: dict[str, Any], timeout: float) -> SimpleNamespace:
        started.append({"name": name, **parameters})
        return SimpleNamespace(id="run-1")

    monkeypatch.setattr(promotion, "measure_version", measure)
    monkeypatch.setattr(model_flows, "run_deployment", run_deployment)
    monkeypatch.setattr(model_flows, "create_markdown_artifact", lambda *arguments, **options: None)
    return started


@pytest.mark.slow
def test_a_champion_that_fell_starts_a_retrain_with_the_reason(promoted: list[dict[str, Any]]) -> None:
    result = model_flows.evaluate.fn(0.05, "retrain/weekly-retrain")
    assert (result["success"], result["at_promotion"], result["has_fallen"], result["started"]) == (0.5, 0.6, True, "run-1")
    reason = (
        "metric: edit success of version 1 dropped from 0.600 to 0.500; "
        "out of date: first, branch@x-1, branch@y-1, network, scores"
    )
    assert promoted == [{"name": "retrain/weekly-retrain", "reason": reason}]
    assert complete_reason(reason) == reason


def test_a_champion_that_fell_is_reported_where_a_retrain_would_do_nothing(
    promoted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc_graph, "read", lambda root: dvc_graph.Graph(root, (), (), {}))
    artifacts: list[str] = []
    monkeypatch.setattr(model_flows, "create_markdown_artifact", lambda text, **options: artifacts.append(text))
    message = r"edit success of version 1 dropped from 0\.600 to 0\.500; no stage is out of date, .* Change data or params"
    with pytest.raises(model_flows.ChampionRegressedError, match=message):
        model_flows.evaluate.fn(0.05, "retrain/weekly-retrain")
    assert promoted == []
    assert "out of date: nothing" in artifacts[0], "want it recorded"
    assert model_flows.evaluate.fn(0.05, "")["has_fallen"], "who asks for no retrain gets the figures"


def test_figures_of_other_conditions_are_reported_without_an_alarm(
    promoted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts: list[str] = []
    monkeypatch.setattr(model_flows, "create_markdown_artifact", lambda text, **options: artifacts.append(text))
    registry.set_version_tags(1, {promotion.CONDITIONS_TAG: "then"})
    result = model_flows.evaluate.fn(0.05, "retrain/weekly-retrain")
    assert (result["success"], result["at_promotion"], result["has_fallen"], promoted) == (0.5, 0.6, False, [])
    assert "conditions changed since the promotion" in artifacts[0]
    assert "== version 1: 0.500 now; conditions changed since the promotion" in capsys.readouterr().out


@pytest.mark.parametrize(("max_loss", "deployment"), [(0.2, "retrain/weekly-retrain"), (0.05, "")])
def test_a_small_loss_starts_nothing(promoted: list[dict[str, Any]], max_loss: float, deployment: str) -> None:
    assert model_flows.evaluate.fn(max_loss, deployment)["started"] == ""
    assert promoted == []


@pytest.mark.slow
def test_backfill_measures_all_versions_with_the_judge_of_now(promoted: list[dict[str, Any]]) -> None:
    assert model_flows.backfill.fn() == {1: 0.5, 2: 1.0}
    tags = registry.get_version(2).tags
    assert (tags["edit_success"], tags["edit_success.items"]) == ("1.0000", "now")
    description = mlflow_client.client().get_model_version(registry.MODEL_NAME, "2").description
    assert description.startswith("Edit success 1.0000 measured by the last backfill. ")


@pytest.mark.slow
def test_backfill_measures_the_others_if_the_files_of_a_version_are_gone(
    promoted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = promotion.measure_version

    def fail_for_first(version: ModelVersion, root: Path) -> Measurement:
        if version.number == 1:
            raise registry.RegistryError("no such artifact: 1/artifacts")
        return measure(version, root)

    monkeypatch.setattr(promotion, "measure_version", fail_for_first)
    with pytest.raises(model_flows.BackfillError, match="want all 2 versions measured, got 1; version 1: no such artifact"):
        model_flows.backfill.fn([1, 2])
    assert "edit_success" not in registry.get_version(1).tags
    assert registry.get_version(2).tags["edit_success"] == "1.0000"


@pytest.mark.parametrize("error", [ServiceError("MLflow is away"), KeyError("a fault of the benchmark")])
def test_backfill_stops_at_an_error_that_all_versions_would_have(
    error: Exception, promoted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def fail(version: ModelVersion, root: Path) -> Measurement:
        tried.append(version.number)
        raise error

    monkeypatch.setattr(promotion, "measure_version", fail)
    with pytest.raises(type(error), match=str(error)):
        model_flows.backfill.fn([1, 2])
    assert tried == [1]


@pytest.mark.slow
def test_rollback_moves_the_champion(promoted: list[dict[str, Any]], project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "models/editor").mkdir(parents=True)
    (project / "models/editor/model_index.json").write_text("{}")
    monkeypatch.setattr(registry, "download_version", lambda uri: project / "models")
    alias_moves.move_champion(2, "better", expected=1)
    assert model_flows.rollback.fn(reason="it was not") == {"champion": 1, "previous": 2}


def test_without_a_champion_there_is_nothing_to_evaluate(store: str) -> None:
    with pytest.raises(registry.RegistryError, match="want a champion to evaluate, got none"):
        model_flows.evaluate.fn()
