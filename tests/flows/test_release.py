"""The registry and the gate, against an MLflow in a file."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emuedit.tracking import registry, runs
from flows import dvc_graph, promotion_gate, release


@pytest.fixture
def made(project: Path) -> Callable[[float], dvc_graph.Graph]:
    """The project as its stages would leave it, without running them."""

    def make(success: float) -> dvc_graph.Graph:
        for folder in ("models/editor", "reports"):
            (project / folder).mkdir(parents=True, exist_ok=True)
        (project / "models/editor/model_index.json").write_text("{}")
        (project / "models/editor/weights.safetensors").write_text(str(success))
        head = {"uid": f"u{success}", "experiment": "network", "name": "one", "params": {}}
        lines = [head, {"step": 1, "ms": 1, "metrics": {"loss": 0.5}}, {"status": "FINISHED"}]
        (project / "models/editor/stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        table = {"identity": {"overall": 0.1, "local": None}, "emuedit": {"overall": success, "local": success}}
        (project / "reports/metrics.json").write_text(json.dumps({"edit_success": table}))
        lock = f"stages:\n  network:\n    outs:\n    - path: models/editor\n      md5: hash{success}.dir\n"
        (project / "dvc.lock").write_text(lock)
        stages = (
            dvc_graph.Stage("network", (), (Path("models/editor"),), meta={"register": "editor"}),
            dvc_graph.Stage("scores", ("network",), (Path("reports"),), meta={"gate": "emuedit", "report": True}),
        )
        return dvc_graph.Graph(project, stages, (Path("reports/metrics.json"),), {})

    return make


@pytest.mark.slow
def test_from_first_model_to_refusal_to_next_champion(
    project: Path, made: Callable[[float], dvc_graph.Graph], store: str, any_model: None
) -> None:
    def retrain(success: float) -> release.RetrainResult:
        graph = made(success)
        return release.finish(project, graph, release.begin(project), {"network": 1.5}, register=True)

    first = retrain(0.5)
    assert first.version is not None
    assert first.new
    assert registry.version_at("champion") == registry.version_at("challenger")
    assert registry.version_at("previous") is None
    assert release.known(made(0.5)) is not None
    again = retrain(0.5)
    assert (again.version and again.version.number, again.new) == (1, False)

    worse = retrain(0.4)
    assert worse.decision == promotion_gate.Decision(False, "edit success 0.400 is not above 0.500, that of the champion")
    assert [(one := registry.version_at(alias)) and one.number for alias in ("champion", "challenger", "previous")] == [1, 2, None]

    better = retrain(0.6)
    assert better.decision is not None
    assert better.decision.promote
    assert [(one := registry.version_at(alias)) and one.number for alias in ("champion", "challenger", "previous")] == [3, 3, 1]

    assert better.version is not None
    tags = better.version.tags
    assert tags["run_id"] == better.run_id == better.version.run_id
    assert tags["dvc.models/editor"] == "hash0.6.dir"
    assert len(tags["dvc.lock"]) == 16
    run = runs.client().get_run(better.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"first.size": "3", "scores.steps": "7", "scores.s_T": "3.0"}
    assert run.data.metrics == {
        "edit_success.identity.overall": 0.1, "edit_success.emuedit.overall": 0.6, "edit_success.emuedit.local": 0.6
    }  # fmt: skip
    child = runs.client().get_run(run.data.tags["run.network"])
    assert child.data.metrics == {"loss": 0.5}
    assert [one.path for one in runs.client().list_artifacts(better.run_id, "reports")] == ["reports/metrics.json"]

    folder = registry.download_version("models:/emuedit-editor@champion")
    assert sorted(path.name for path in folder.iterdir()) == ["defaults.json", "editor"]
    assert json.loads((folder / "defaults.json").read_text()) == {
        "seed": 0,
        "steps": 7,
        "s_I": 1.5,
        "s_T": 3.0,
        "phi": 0.0,
        "hold": 1.0,
        "alpha": 0.03,
    }
    assert (folder / "editor/weights.safetensors").read_text() == "0.6"
    assert registry.download_version("models:/emuedit-editor/3") == folder
    with pytest.raises(registry.RegistryError, match=r"has no models:/emuedit-editor/9"):
        registry.download_version("models:/emuedit-editor/9")
    with pytest.raises(registry.RegistryError, match="want models:/emuedit-editor@champion"):
        registry.download_version("models:/emuedit-editor")


@pytest.mark.slow
def test_what_cannot_answer_is_not_registered(
    project: Path, made: Callable[[float], dvc_graph.Graph], store: str, any_model: None
) -> None:
    graph = made(0.5)
    release.MODEL_FILE.write_text(release.MODEL_FILE.read_text().replace('[{"image"', 'no_such_name + [{"image"'))
    with pytest.raises(registry.RegistryError, match=r"cannot answer its own example: .*no_such_name"):
        release.finish(project, graph, release.begin(project), {}, register=True)
    assert registry.version_at("challenger") is None
    (project / "models/editor/weights.pkl").write_text("")
    with pytest.raises(registry.RegistryError, match=r"got \['weights.pkl'\]; other formats can run code"):
        release.finish(project, graph, release.begin(project), {}, register=True)


def test_a_run_left_open_by_a_killed_flow_is_closed(store: str) -> None:
    left, other = runs.start_run("retrain", "here"), runs.start_run("retrain", "elsewhere")
    runs.start_run("retrain", "here")
    assert [runs.client().get_run(one).info.status for one in (left, other)] == ["KILLED", "RUNNING"]


def test_an_aim_without_a_judge_is_refused(project: Path, made: Callable[[float], dvc_graph.Graph], store: str) -> None:
    graph = made(0.5)
    unjudged = dvc_graph.Graph(project, graph.stages[:1], graph.metrics, {})
    with pytest.raises(promotion_gate.GateError, match="want one stage with `meta"):
        release.finish(project, unjudged, release.begin(project), {}, register=True)


def test_numbers_are_flattened() -> None:
    values: dict[str, Any] = {"a": {"b": 1, "c": [0.5, None]}, "d@e": float("nan"), "f?": "text"}
    assert dict(runs.flatten(values)) == {"a.b": 1, "a.c.0": 0.5, "f_": "text"}


def test_requirements_are_what_is_installed() -> None:
    found = dict(one.split("==") for one in registry.requirements())
    assert found["torch"] == importlib.metadata.version("torch").split("+")[0]
    assert {"diffusers", "transformers", "mlflow", "pillow", "safetensors"} <= set(found)
    assert not {"prefect", "dvc"} & set(found)
