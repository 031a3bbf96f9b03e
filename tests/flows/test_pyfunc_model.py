"""The registered model with a real, untrained editor: registered, then loaded where the project is not installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emuedit.tracking import registry
from flows import dvc_graph, release

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = """
import base64, io, json, sys
sys.path[:] = [one for one in sys.path if one and one != PROJECT]
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in type(one).__module__ and "editable" not in repr(one)]
import mlflow, pandas
from PIL import Image
model = mlflow.pyfunc.load_model("models:/emuedit-editor@challenger")
import emuedit
stream = io.BytesIO()
Image.new("RGB", (40, 24), (90, 140, 200)).save(stream, "PNG")
picture = base64.b64encode(stream.getvalue()).decode()
def ask(image, **more):
    return model.predict(pandas.DataFrame({"image": [image], "instruction": ["make the star red"], **more}), params={"steps": 2})
told, free = ask(picture, task=["local"]), ask("data:image/png;base64," + picture)
wrong = []
for image, more in (("???", {}), (base64.b64encode(b"no picture").decode(), {}), (picture, {"task": ["dance"]})):
    try:
        ask(image, **more)
    except Exception as error:  # MLflow may wrap it: the message is what is looked at
        wrong.append(str(error))
size = Image.open(io.BytesIO(base64.b64decode(told.image[0]))).size
print(json.dumps({
    "code": emuedit.__file__, "columns": [*told.columns], "task": told.task[0], "size": size,
    "sure": [told.probability[0], free.probability[0]], "wrong": wrong, "free": free.task[0],
    "names": sorted(one for one in sys.modules if "toyworld" in one or one.split(".")[0] in ("prefect", "dvc")),
}))
"""


@pytest.fixture
def untrained(project: Path) -> dvc_graph.Graph:
    from emuedit.editor import checkpoint, task_predictor
    from emuedit.models import text_to_image

    torch.manual_seed(0)
    found = text_to_image.load(str(ROOT / "toyworld/weights/base_model"))
    checkpoint.save(checkpoint.from_base_model(found, 6), found.pipeline, project / "models/editor", torch.float16)
    task_predictor.start(str(ROOT / "toyworld/weights/t5"), ["local", "remove"], 64).save(project / "models/router")
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
def test_it_answers_where_the_project_is_not_installed(
    project: Path, untrained: dvc_graph.Graph, store: str, tmp_path: Path
) -> None:
    outcome = release.finish(project, untrained, release.begin(project), {}, register=True)
    assert outcome.decision is not None
    assert not outcome.decision.promote
    assert registry.version_at("champion") is None
    folder = registry.download_version("models:/emuedit-editor@challenger")
    assert sorted(path.name for path in folder.iterdir()) == ["defaults.json", "editor", "router"]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = f"PROJECT = {str(ROOT)!r}{ELSEWHERE}"
    clean = {"PYTHONPATH": "", "MLFLOW_TRACKING_URI": store, "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run([sys.executable, "-c", program], cwd=elsewhere, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert "/code/emuedit/" in answer["code"]
    assert not (Path(answer["code"]).parent / "toyworld").exists()
    assert answer["names"] == []
    assert (answer["columns"], answer["task"], answer["size"]) == (["image", "task", "probability"], "local", [40, 24])
    assert answer["free"] in ("local", "remove")
    assert answer["sure"][0] == 1.0
    assert 0.5 <= answer["sure"][1] < 1.0
    for want, got in zip(["in base64", "none that can be read", "want a task of"], answer["wrong"], strict=True):
        assert "row 0: " in got
        assert want in got


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
    said = capsys.readouterr().out
    assert '"make the star red": ' in said
    assert "in-edited.png: 40 x 24" in said
    assert image_io.read_image("in-edited.png").pixels.shape == (24, 40, 3)
