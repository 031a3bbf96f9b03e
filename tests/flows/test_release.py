"""The registry and the promotion gate with a real MLflow database."""

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emuedit.promotion import lineage, promote
from emuedit.promotion.gate import GateError
from emuedit.promotion.promotion_commands import format_models
from emuedit.tracking import alias_moves, mlflow_client, model_signature, registry, runs
from flows import dvc_graph, release
from flows.retrain_options import RetrainOptions

FinishStages = Callable[[float], dvc_graph.Graph]


@pytest.fixture
def finish_stages(project: Path) -> FinishStages:
    """Writes what the stages would, for a given edit success, without running them."""

    def write(success: float) -> dvc_graph.Graph:
        for folder in ("models/editor", "reports"):
            (project / folder).mkdir(parents=True, exist_ok=True)
        (project / "models/editor/model_index.json").write_text("{}")
        (project / "models/editor/weights.safetensors").write_text(str(success))
        summary = {"stage": "network", "params": {"dtype": "float32"}}
        (project / "models/editor/summary.json").write_text(json.dumps(summary))
        head = {"uid": f"u{success}", "experiment": "network", "name": "one", "params": {}}
        lines = [head, {"step": 1, "ms": 1, "metrics": {"loss": 0.5}}, {"status": "FINISHED"}]
        (project / "logs/network").mkdir(parents=True, exist_ok=True)
        (project / "logs/network/stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        table = {"identity": {"overall": 0.1, "local": None}, "emuedit": {"overall": success, "local": success}}
        (project / "reports/shard-emuedit-local.parquet").write_text("pictures")
        (project / "reports/metrics.json").write_text(json.dumps({"edit_success": table}))
        lock = f"stages:\n  network:\n    outs:\n    - path: models/editor\n      md5: hash{success}.dir\n"
        (project / "dvc.lock").write_text(lock)
        stages = (
            dvc_graph.Stage("network", (), (Path("models/editor"),), meta={"register": "editor"}),
            dvc_graph.Stage("scores", ("network",), (Path("reports"),), meta={"gate": "emuedit", "report": True}),
        )
        return dvc_graph.Graph(project, stages, (Path("reports/metrics.json"),), {})

    return write


def aliases() -> list[int | None]:
    """Version numbers of champion, challenger and previous."""
    versions = [registry.version_at(alias) for alias in ("champion", "challenger", "previous")]
    return [version.number if version else None for version in versions]


@pytest.mark.slow
def test_from_first_model_to_refusal_to_next_champion(
    project: Path, finish_stages: FinishStages, store: str, weightless_model: None
) -> None:
    def retrain(success: float) -> release.RetrainResult:
        graph = finish_stages(success)
        return release.finish(graph, release.start(project), {"network": 1.5}, RetrainOptions(reason="data: new captions"))

    first = retrain(0.5)
    assert first.version is not None
    assert first.is_new
    assert first.version.created_ms == registry.get_version(1).created_ms > 0
    table = format_models(registry.all_versions(), {"champion": first.version})
    assert "data: new captions" in table.splitlines()[1]
    assert aliases() == [1, None, None]
    assert release.find_registered(finish_stages(0.5)) is not None
    again = retrain(0.5)
    assert (again.version and again.version.number, again.is_new) == (1, False)

    worse = retrain(0.4)
    assert worse.decision is not None
    assert not worse.decision.promote
    assert worse.decision.reason.startswith("edit success 0.400 against 0.500 of models:/emuedit-editor/1 (-0.100, ")
    assert worse.version is not None
    assert registry.get_version(worse.version.number).tags[promote.STATE_TAG] == promote.REFUSED
    assert aliases() == [1, 2, None]

    better = retrain(0.6)
    assert better.decision is not None
    assert better.decision.promote
    assert aliases() == [3, None, 1]

    assert better.version is not None
    table = json.loads(registry.get_version(3).tags[promote.TABLE_TAG])
    assert table[0] == ["overall", 100, 0.5, 0.6]
    assert [move.champion for move in alias_moves.history()] == [1, 3]
    tags = better.version.tags
    assert tags["run_id"] == better.run_id == better.version.run_id
    assert tags["dvc.models/editor"] == "hash0.6.dir"
    assert len(tags["dvc.lock"]) == 16
    run = mlflow_client.client().get_run(better.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"first.size": "3", "scores.settings.steps": "7", "scores.settings.guidance_scale": "3.0"}
    assert run.data.metrics == {
        "edit_success.identity.overall": 0.1, "edit_success.emuedit.overall": 0.6, "edit_success.emuedit.local": 0.6
    }  # fmt: skip
    assert run.data.tags["dtype.network"] == "float32"
    child = mlflow_client.client().get_run(run.data.tags["run.network"])
    assert child.data.metrics == {"loss": 0.5}
    artifacts = [artifact.path for artifact in mlflow_client.client().list_artifacts(better.run_id, "reports")]
    assert artifacts == ["reports/metrics.json"], "without the evaluated pictures"
    assert runs.read_text(better.run_id, "promotion/table.txt") == better.decision.table()
    assert lineage.read_file(better.version, "dvc.lock") == (project / "dvc.lock").read_text()
    assert runs.read_text(better.run_id, "lineage/none.txt") is None

    folder = registry.download_version("models:/emuedit-editor@champion")
    assert sorted(path.name for path in folder.iterdir()) == ["editor", "manifest.json", "settings.json"]
    assert json.loads((folder / "settings.json").read_text()) == {
        "steps": 7,
        "image_guidance_scale": 1.5,
        "guidance_scale": 3.0,
        "guidance_from": 0.0,
        "guidance_to": 1.0,
        "guidance_rescale": 0.0,
        "preserve": 1.0,
        "composite": 1,
        "border_px": 2,
        "change_threshold": 0.03,
        "background_threshold": 0.15,
        "against_reconstruction": 1,
        "resolution": 0,
        "crop": 0,
        "seed": 0,
    }
    assert (folder / "editor/weights.safetensors").read_text() == "0.6"
    assert registry.download_version("models:/emuedit-editor/3") == folder
    of_run = registry.download_version(f"runs:/{better.run_id}/emuedit-editor")
    assert (of_run / "editor/weights.safetensors").read_text() == "0.6"
    with pytest.raises(registry.RegistryError, match="want runs:/<run id>/emuedit-editor"):
        registry.download_version("runs:/1234")
    with pytest.raises(registry.RegistryError, match="has no model at runs:/1234/emuedit-editor"):
        registry.download_version("runs:/1234/emuedit-editor")
    with pytest.raises(registry.RegistryError, match=r"has no models:/emuedit-editor/9"):
        registry.download_version("models:/emuedit-editor/9")
    with pytest.raises(registry.RegistryError, match="want models:/emuedit-editor@champion"):
        registry.download_version("models:/emuedit-editor")

    shutil.rmtree(project / "mlruns")
    shutil.rmtree(folder.parent)  # in the cache of the user
    with pytest.raises(registry.RegistryError, match="its files are missing in the artifact store; choose another one"):
        registry.download_version("models:/emuedit-editor/3")
    with pytest.raises(registry.RegistryError, match=r"version 3 has no dvc.lock in the artifact store"):
        lineage.read_file(better.version, "dvc.lock")


@pytest.mark.slow
def test_a_model_that_cannot_answer_is_not_registered(
    project: Path, finish_stages: FinishStages, store: str, weightless_model: None
) -> None:
    graph = finish_stages(0.5)
    release.MODEL_FILE.write_text(release.MODEL_FILE.read_text().replace('[{"image"', 'no_such_name + [{"image"'))
    with pytest.raises(registry.RegistryError, match=r"fails on its input example: .*no_such_name"):
        release.finish(graph, release.start(project), {}, RetrainOptions())
    assert registry.version_at("challenger") is None
    (project / "models/editor/weights.pkl").write_text("")
    with pytest.raises(registry.RegistryError, match=r"got \['weights.pkl'\]; other formats can run code"):
        release.finish(graph, release.start(project), {}, RetrainOptions())


@pytest.mark.slow
def test_a_registration_that_mlflow_made_twice_is_one_new_version(
    project: Path, finish_stages: FinishStages, store: str, weightless_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer was lost, and the request sent again. The version was taken for one of another workspace."""
    import mlflow

    release.finish(finish_stages(0.5), release.start(project), {}, RetrainOptions())
    register = mlflow.register_model

    def register_twice(*arguments: Any, **options: Any) -> Any:
        register(*arguments, **options)
        return register(*arguments, **options)

    monkeypatch.setattr(mlflow, "register_model", register_twice)
    worse = release.finish(finish_stages(0.4), release.start(project), {}, RetrainOptions())
    assert (worse.is_new, worse.version and worse.version.number) == (True, 2)
    assert [version.number for version in registry.all_versions()] == [1, 2]
    assert aliases() == [1, 2, None]


@pytest.mark.slow
def test_the_same_model_of_another_workspace_is_not_new(
    project: Path, finish_stages: FinishStages, store: str, weightless_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both registered it at the same moment."""
    first = release.finish(finish_stages(0.5), release.start(project), {}, RetrainOptions())
    monkeypatch.setattr(registry, "find_version", lambda content: None)
    second = release.finish(finish_stages(0.5), release.start(project), {}, RetrainOptions())
    assert first.version is not None
    assert (second.is_new, second.version and second.version.run_id) == (False, first.version.run_id)
    assert aliases() == [1, None, None]


@pytest.mark.slow
def test_a_version_whose_retrain_was_killed_before_the_gate_is_decided_about_by_the_next(
    project: Path, finish_stages: FinishStages, store: str, weightless_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = finish_stages(0.5)
    with monkeypatch.context() as killed:
        killed.setattr(release.promote, "promote", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            release.finish(graph, release.start(project), {}, RetrainOptions())
    assert aliases() == [None, 1, None]
    client = mlflow_client.client()
    client.delete_registered_model_alias(registry.MODEL_NAME, "challenger")  # as if it was killed a moment earlier
    assert release.find_registered(graph) is None, "a version without a decision is unfinished work"
    result = release.finish(graph, release.start(project), {}, RetrainOptions())
    assert aliases() == [1, None, None]
    assert (result.is_new, result.version and result.version.number) == (False, 1)
    assert release.find_registered(graph) is not None


@pytest.mark.slow
@pytest.mark.parametrize("workspace", ["here", 'vm:/data/o\'neil/my "edits"'])
def test_a_run_left_open_by_a_killed_flow_is_closed_by_the_next(workspace: str, store: str) -> None:
    killed, other = runs.start_run("retrain", workspace), runs.start_run("retrain", "elsewhere")
    sent_later = runs.start_run("retrain", workspace)  # as `emuedit sync` does beside a retrain
    assert mlflow_client.client().get_run(killed).info.status == "RUNNING"
    runs.end_open_runs(workspace)
    states = [mlflow_client.client().get_run(run_id).info.status for run_id in (killed, sent_later, other)]
    assert states == ["KILLED", "KILLED", "RUNNING"]


@pytest.mark.slow
def test_the_next_pod_closes_the_run_of_a_killed_one(project: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMUEDIT_WORKSPACE_NAME", "cluster")
    run_ids = []
    for host in ("retrain-x7k2p", "retrain-9fq4d"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        run_ids.append(release.start(project))
    assert [mlflow_client.client().get_run(run_id).info.status for run_id in run_ids] == ["KILLED", "RUNNING"]


@pytest.mark.slow
def test_a_model_without_a_deciding_stage_is_refused(project: Path, finish_stages: FinishStages, store: str) -> None:
    graph = finish_stages(0.5)
    undecided = dvc_graph.Graph(project, graph.stages[:1], graph.metrics, {})
    with pytest.raises(GateError, match="want one stage with `meta"):
        release.finish(undecided, release.start(project), {}, RetrainOptions())


def test_numbers_are_flattened() -> None:
    values: dict[str, Any] = {"a": {"b": 1, "c": [0.5, None]}, "d@e": float("nan"), "f?": "text"}
    assert dict(runs.flatten(values)) == {"a.b": 1, "a.c.0": 0.5, "f_": "text"}


def test_requirements_are_what_is_installed() -> None:
    pinned = dict(requirement.split("==") for requirement in model_signature.requirements())
    assert pinned["torch"] == importlib.metadata.version("torch").split("+")[0]
    assert {"diffusers", "transformers", "mlflow", "pillow", "safetensors"} <= set(pinned)
    assert not {"prefect", "dvc"} & set(pinned)
