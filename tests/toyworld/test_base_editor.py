import json
from pathlib import Path

import pytest
import yaml

from emuedit import config
from emuedit.data.publish import read_summary
from emuedit.prompts.moderation import load_word_list
from emuedit.stages.evaluation import EvaluationParams
from emuedit.stages.instructions import InstructionsParams
from emuedit.stages.train import TrainParams
from emuedit.tasks import ALL_TASKS
from toyworld.scenes.caption_grammar import captions
from toyworld.training import base_editor
from toyworld.training.base_editor import OUTPUTS


def test_the_workspace_has_all_tasks_and_leaves_words_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_editor.prepare(tmp_path)
    base_editor.prepare(tmp_path)  # a second sitting
    monkeypatch.chdir(tmp_path)
    instructions = config.load(InstructionsParams, "instructions")
    assert set(instructions.tasks) == set(config.load(EvaluationParams, "evaluation").tasks) == set(ALL_TASKS)
    assert config.load(TrainParams, "train").start == "base_model"
    words = load_word_list(tmp_path / instructions.moderation)
    left_out = sum(words.first_match([caption]) is not None for caption in captions("train", 0, 300)) / 300
    assert 0.4 < left_out < 0.7
    assert {words.first_match([text]) for text in ("on the sea", "a dotted ring", "a red heart", "as a watercolour")} == {
        "sea", "dotted", "heart", None,
    }  # fmt: skip
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"train": {"steps": 1}}))
    with pytest.raises(SystemExit, match="want a folder whose params are those of this training"):
        base_editor.prepare(tmp_path)


def test_what_is_published_is_not_made_again(tmp_path: Path) -> None:
    assert base_editor.missing_stages(tmp_path) == list(OUTPUTS)
    for stage in ("captions", "instructions", "router"):
        (tmp_path / OUTPUTS[stage]).mkdir(parents=True)
        (tmp_path / OUTPUTS[stage] / "summary.json").write_text("{}")
    assert base_editor.missing_stages(tmp_path) == ["pairs", "router", "dataset", "validation", "train", "evaluation"]


def test_the_editor_is_published_with_its_metrics_and_replaces_the_former(tmp_path: Path) -> None:
    for name, text in {
        "models/editor/model_index.json": "{}",
        "models/editor/stats.jsonl": "",
        "models/editor/replay/x": "",
        "models/editor/summary.json": json.dumps({"stage": "train", "key": "k", "params": {}, "counts": {"steps": 3}, "shards": {}}),
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
