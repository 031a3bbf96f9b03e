from pathlib import Path

import pytest
import torch

from emuedit import config
from emuedit.data.publish import publish, read_summary
from emuedit.data.shards import ShardError
from emuedit.editor import checkpoint, sampling, task_pack
from emuedit.editor.sampling import Editor
from emuedit.models import text_to_image
from emuedit.stages import inversion
from emuedit.stages.inversion import Params

ROOT = Path(__file__).parents[2]
SMALL = {"steps": 12, "batch": 4, "n_examples": 4, "n_held_out": 2, "eval_every_steps": 4, "dtype": "float32", "device": "cpu"}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, and no MLflow: it is the mirror's business."""
    monkeypatch.setattr("emuedit.tracking.stats._Mirror._try", lambda self: None)
    torch.set_num_threads(1)


def knobs(**changes: object) -> Params:
    base = config.load(Params, "inversion", ROOT / "params.yaml").model_dump()
    return Params.model_validate(base | SMALL | changes)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with an editor whose every weight is at work."""
    root = tmp_path_factory.mktemp("root")
    base_model = text_to_image.load(str(ROOT / "toyworld/weights/base_model"))
    torch.manual_seed(0)
    net = checkpoint.from_base_model(base_model, 8)
    with torch.no_grad():
        for weight in (net.unet.conv_in.weight, net.unet.class_embedding.weight):
            weight += 0.05 * torch.randn_like(weight)
    checkpoint.save(net, base_model.pipeline, root / inversion.EDITOR, torch.float16)
    scratch = root / "empty" / "x"
    scratch.mkdir(parents=True)
    summary = publish(scratch, root / "made", "train", {}, {})
    assert summary.station == "train"
    (root / "made" / "summary.json").rename(root / inversion.EDITOR / "summary.json")
    return root


@pytest.fixture
def editor(published: Path) -> Editor:
    return sampling.load(str(published / inversion.EDITOR))


def learned(editor: Editor, params: Params, held_out: slice = slice(4, 6)) -> inversion.Learned:
    found = inversion.benchmark.load(params.world.benchmark)(params.task, "train", 0, 6)
    everything = inversion.examples(editor, found)
    some = inversion._some(everything, torch.arange(4)), inversion._some(everything, torch.arange(6)[held_out])
    return inversion.invert(editor, *some, params)


def test_only_v_is_learned(editor: Editor) -> None:
    """And the loss falls: of the same edits, for a random editor has nothing to generalise, at times and noise it never saw."""
    before = {name: value.clone() for name, value in editor.net.state_dict().items()}
    tasks = editor.tasks
    got = learned(editor, knobs(), slice(0, 4))
    assert editor.tasks == tasks
    for name, value in editor.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert got.v.shape == (8,)
    assert got.loss < got.loss_start
    assert not torch.equal(got.v, inversion.starts(editor)[got.start])


def test_it_starts_from_what_serves_best_and_stops_when_nothing_helps(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    none = learned(editor, knobs(steps=0))
    assert torch.equal(none.v, inversion.starts(editor)[none.start])
    assert none.loss == none.loss_start
    worse = learned(editor, knobs(lr=100.0, steps=40, eval_every_steps=1, patience=2))
    assert worse.steps < 40
    assert worse.loss <= worse.loss_start
    row = editor.net.table.v.detach()[3]
    monkeypatch.setattr(inversion, "starts", lambda e: {"mean": 50 * torch.ones(8), "texture": row})
    assert learned(editor, knobs(steps=0)).start == "texture"


def test_station_publishes_a_pack_that_the_editor_takes(published: Path, editor: Editor) -> None:
    params = knobs(task="superres", steps=4)
    summary = inversion.run(params, published)
    assert read_summary(published / inversion.OUT) == summary
    assert set(summary.shards) == {"superres.safetensors", "stats.jsonl"}
    made = task_pack.add(editor, published / inversion.OUT / "superres.safetensors")
    assert (made.name, made.n_examples, made.base) == ("superres", 4, editor.weights)
    assert made.record["knobs"]["lr"] == params.lr
    got = editor.edit(torch.zeros(1, 3, 64, 64), ["sharpen"], ["superres"], [0], steps=1, s_I=1.0, s_T=1.0)
    assert got.shape == (1, 3, 64, 64)
    first = (published / inversion.OUT / "superres.safetensors").read_bytes()
    inversion.run(params, published)
    assert (published / inversion.OUT / "superres.safetensors").read_bytes() == first


def test_a_half_published_editor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="want a published folder"):
        inversion.run(knobs(), tmp_path)
