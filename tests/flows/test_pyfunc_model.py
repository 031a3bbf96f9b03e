"""The registered model with a real, untrained editor: registered, then loaded where the project is not installed."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from emuedit.data.file_manifest import ManifestError
from emuedit.editor.settings import EditSettings
from emuedit.tracking import registry
from flows import dvc_graph, release
from flows.retrain_options import RetrainOptions

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = """
import base64, io, json, sys
sys.path[:] = [path for path in sys.path if path and path != PROJECT]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__ + repr(finder)]
import mlflow, pandas
from PIL import Image
model = mlflow.pyfunc.load_model("models:/emuedit-editor@challenger")
import emuedit
stream = io.BytesIO()
Image.new("RGB", (40, 24), (90, 140, 200)).save(stream, "PNG")
picture = base64.b64encode(stream.getvalue()).decode()
def predict(image, **more):
    return model.predict(pandas.DataFrame({"image": [image], "instruction": ["make the star red"], **more}), params={"steps": 2})
with_task, without_task = predict(picture, task=["local"]), predict("data:image/png;base64," + picture)
errors = []
for image, more in (("???", {}), (base64.b64encode(b"no picture").decode(), {}), (picture, {"task": ["dance"]})):
    try:
        predict(image, **more)
    except Exception as error:  # MLflow may wrap it: the message is what is looked at
        errors.append(str(error))
size = Image.open(io.BytesIO(base64.b64decode(with_task.image[0]))).size
print(json.dumps({
    "code": emuedit.__file__, "columns": [*with_task.columns], "task": with_task.task[0], "size": size,
    "probabilities": [with_task.probability[0], without_task.probability[0]], "errors": errors,
    "predicted_task": without_task.task[0], "params": [param.name for param in model.metadata.get_params_schema()],
    "unwanted_modules": sorted(name for name in sys.modules if name.split(".")[0] in ("toyworld", "prefect", "dvc")),
}))
"""


@pytest.fixture
def untrained(project: Path) -> dvc_graph.Graph:
    from emuedit.editor import checkpoint
    from emuedit.models import text_to_image
    from emuedit.predictor import task_predictor

    torch.manual_seed(0)
    base_model = text_to_image.load(str(ROOT / "toyworld/weights/base_model"))
    checkpoint.save(checkpoint.from_base_model(base_model, 6), base_model.pipeline, project / "models/editor", torch.float16)
    task_predictor.from_t5(str(ROOT / "toyworld/weights/t5"), ["local", "remove"], 64).save(project / "models/router")
    benchmark = "toyworld/edits/toy_benchmark.py"
    scores = "{tasks: [local], n_edits: 4, settings: {steps: 1}, device: cpu}"
    (project / "params.yaml").write_text(f"world: {{benchmark: {benchmark}}}\nscores: {scores}\npromotion: {{min_edits: 4}}\n")
    (project / "reports").mkdir()
    table = {"identity": {"overall": 0.1}, "emuedit": {"overall": 0.05}}
    (project / "reports/metrics.json").write_text(json.dumps({"edit_success": table}))
    stages = (
        dvc_graph.Stage("network", (), (Path("models/editor"),), meta={"register": "editor"}),
        dvc_graph.Stage("guide", (), (Path("models/router"),), meta={"register": "router"}),
        dvc_graph.Stage("scores", (), (Path("reports"),), meta={"gate": "emuedit"}),
    )
    return dvc_graph.Graph(project, stages, (Path("reports/metrics.json"),), {})


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_model_answers_where_the_project_is_not_installed(
    project: Path, untrained: dvc_graph.Graph, store: str, tmp_path: Path
) -> None:
    result = release.finish(untrained, release.start(project), {}, RetrainOptions())
    assert result.decision is not None
    assert result.decision.reason.startswith("edit success 0.000 against 0.000 of the identity baseline")
    assert not result.decision.promote
    assert registry.version_at("champion") is None
    folder = registry.download_version("models:/emuedit-editor@challenger")
    assert sorted(path.name for path in folder.iterdir()) == ["editor", "manifest.json", "router", "settings.json"]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = f"PROJECT = {str(ROOT)!r}{ELSEWHERE}"
    environment = {"PYTHONPATH": "", "MLFLOW_TRACKING_URI": store, "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["OMP_NUM_THREADS"] = "1"  # more threads only cost time, for networks this small
    process = subprocess.run([sys.executable, "-c", program], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    answer = json.loads(process.stdout.splitlines()[-1])
    assert "/code/emuedit/" in answer["code"]
    assert not (Path(answer["code"]).parents[1] / "toyworld").exists()
    assert answer["unwanted_modules"] == []
    assert answer["params"] == [*EditSettings.model_fields, "mask"]
    columns = ["image", "task", "probability", "changed_share", "changed_box"]
    assert (answer["columns"], answer["task"], answer["size"]) == (columns, "local", [40, 24])
    assert answer["predicted_task"] in ("local", "remove")
    assert answer["probabilities"][0] == 1.0
    assert 0.0 < answer["probabilities"][1] < 1.0
    for expected, error in zip(["in base64", "not a readable image", "want one of the tasks"], answer["errors"], strict=True):
        assert "row 0: " in error
        assert expected in error


def test_a_model_without_the_manifest_of_its_parts_is_not_opened(tmp_path: Path) -> None:
    from flows.pyfunc_model import EditorModel

    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"want manifest.json with the hashes of all files"):
        EditorModel().load_context(SimpleNamespace(artifacts={"settings": str(tmp_path / "settings.json")}))


@pytest.mark.slow
def test_the_command_line_edits_with_it(
    project: Path, untrained: dvc_graph.Graph, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from emuedit import cli
    from emuedit.data import image_io

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Image.new("RGB", (40, 24), (90, 140, 200)).save("in.png")
    assert cli.main(["edit", "in.png", "make the star red", "remove the ring", "--steps", "2"]) == 0
    output = capsys.readouterr().out
    assert '"make the star red": ' in output
    assert "in-edited.png: 40 x 24" in output
    assert image_io.read_image("in-edited.png").pixels.shape == (24, 40, 3)
