import json
from pathlib import Path

import pytest
import yaml

from emuedit import config
from emuedit.data.publish import read_folder, read_summary
from emuedit.data.records import Pair
from emuedit.data.word_list import load_word_list
from emuedit.editor import sampling
from emuedit.editor.settings import EditSettings
from emuedit.metrics.systems import make_edits
from emuedit.stages.evaluation import EvaluationParams
from emuedit.stages.instructions import InstructionsParams
from emuedit.stages.train import TrainParams
from emuedit.training import starting_point
from emuedit.training.batches.kept_pairs import REPLAY_PAIRS
from tests.repository import ROOT
from toyworld.edits import exact_judge
from toyworld.edits.exact_edits import build_edits
from toyworld.edits.toy_tasks import TRAINED
from toyworld.scenes.caption_grammar import captions
from toyworld.training import base_editor
from toyworld.training.__main__ import WEIGHTS
from toyworld.training.base_editor import OUTPUTS


def test_the_workspace_has_all_tasks_and_leaves_words_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_editor.prepare(tmp_path)
    base_editor.prepare(tmp_path)  # a second sitting
    monkeypatch.chdir(tmp_path)
    instructions = config.load(InstructionsParams, "instructions")
    assert set(instructions.tasks) == set(config.load(EvaluationParams, "evaluation").tasks) == set(TRAINED)
    assert config.load(TrainParams, "train").start == "base_model"
    words = load_word_list(tmp_path / instructions.moderation)
    left_out = sum(words.first_match([caption]) is not None for caption in captions("train", 0, 300)) / 300
    assert 0.4 < left_out < 0.7
    assert {words.first_match([text]) for text in ("on the sea", "a dotted ring", "a red heart", "as a watercolour")} == {
        "sea", "dotted", "heart", None,
    }  # fmt: skip
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"train": {"steps": 1}}))
    with pytest.raises(SystemExit, match="want a folder with the params of this training"):
        base_editor.prepare(tmp_path)


def test_a_workspace_moves_between_machines_with_and_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "params.yaml"
    for has_gpu in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        base_editor.prepare(tmp_path)
        assert config.load(TrainParams, "train", file).cuda_graph is has_gpu
    params = yaml.safe_load(file.read_text())
    params["train"]["lr"] = 0.5
    file.write_text(yaml.safe_dump(params))
    with pytest.raises(SystemExit, match="want a folder with the params of this training"):
        base_editor.prepare(tmp_path)


def test_a_continuation_starts_from_the_published_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_editor.prepare(tmp_path, continued=True)
    with pytest.raises(SystemExit, match="want a folder with the params of this training"):
        base_editor.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = config.load(TrainParams, "train")
    start = starting_point.resolve(settings.start, config.load(config.World, "world"), tmp_path)
    assert start.is_editor
    assert Path(start.folder).resolve() == ROOT / "toyworld/weights/base_editor"
    assert 0 < settings.start_share < 1
    instructions = config.load(InstructionsParams, "instructions")
    assert instructions.choice == "random"
    assert load_word_list(tmp_path / instructions.moderation).first_match(["on the sea"]), "words that are held back stay so"


def test_what_is_published_is_not_made_again(tmp_path: Path) -> None:
    assert base_editor.missing_stages(tmp_path) == list(OUTPUTS)
    for stage in ("captions", "instructions", "router"):
        (tmp_path / OUTPUTS[stage]).mkdir(parents=True)
        (tmp_path / OUTPUTS[stage] / "summary.json").write_text("{}")
    assert base_editor.missing_stages(tmp_path) == ["pairs", "router", "dataset", "validation", "train", "evaluation"]


def test_the_editor_is_published_with_its_metrics_and_replaces_the_former(tmp_path: Path) -> None:
    summary_text = json.dumps({"stage": "train", "key": "k", "params": {}, "counts": {"steps": 3}, "shards": {}})
    for name, text in {
        "models/editor/model_index.json": "{}",
        "models/editor/replay/x": "",
        "models/editor/summary.json": summary_text,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "reports/evaluation").mkdir(parents=True)
    (tmp_path / "reports/evaluation/metrics.json").write_text('{"edit_success": {}}')
    out = tmp_path / "weights/base_editor"
    out.mkdir(parents=True)
    (out / "former").write_text("")
    base_editor.publish(tmp_path, out)
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "model_index.json", "replay", "summary.json"]
    summary = read_summary(out)
    assert summary.counts == {"steps": 3}
    assert set(summary.shards) == {"metrics.json", "model_index.json", "replay/x"}
    assert json.loads((out / "metrics.json").read_text()) == {"edit_success": {}}


@pytest.mark.slow
def test_the_published_editor_knows_all_tasks_and_keeps_pairs_for_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    start = starting_point.resolve("base_editor", config.load(config.World, "world"), ROOT)
    editor = sampling.load(start.folder)
    assert editor.tasks == TRAINED
    assert start.replay is not None
    replayed = list(read_folder(start.replay / REPLAY_PAIRS, Pair, verify=True))
    assert {pair.task for pair in replayed} == set(TRAINED)
    words = load_word_list(base_editor.FILES / "held_back.txt")
    assert words.first_match([pair.instruction for pair in replayed]) is None, "replay teaches a word that was held back"
    metrics = json.loads((Path(start.folder) / "metrics.json").read_text())
    for name in ("edit_success", "edit_success_new_words", "edit_success_without_new_words"):
        assert metrics[name]["true_task"].keys() == {"overall", *TRAINED}


@pytest.mark.slow
def test_the_published_editor_removes_objects_that_it_has_not_seen() -> None:
    """Not at random: an editor that does nothing, or anything, removes none of 24."""
    edits = build_edits("remove", "held_out", 200, 24)
    editor = sampling.load(WEIGHTS / "base_editor")
    settings = EditSettings(steps=4, image_guidance_scale=1.0, guidance_scale=1.0)
    outputs = make_edits(editor, edits, ["remove"] * 24, settings, list(range(24)))
    assert exact_judge.judge(outputs, edits.before, edits.exact, edits.alternatives).success.mean() >= 0.4
    assert edits.judge(outputs).success.mean() >= 0.2  # and no shade is left
