"""The whole chain at smoke size: every stage of dvc.yaml in its order, a few captions, a few steps, in a folder of its own."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from emuedit import config
from emuedit.data.png import decode_png
from emuedit.data.publish import read_folder
from emuedit.data.records import EvalRecord, Instruction, Pair, Verdict
from emuedit.editor import sampling
from emuedit.models import image_tensors

ROOT = Path(__file__).parents[2]
SMALL: dict[str, dict[str, Any]] = {
    "captions": {"n_rows": 24, "rows_per_shard": 12},
    "instructions": {"n_captions": 4, "captions_per_shard": 2},
    "pairs": {"steps": 3},
    "dataset": {"sheet_pairs": 1},
    "router": {"epochs": 1},
    "train": {"steps": 4, "batch": 4, "processes": 1, "warmup_steps": 1, "eval_every_steps": 4, "held_out_share": 0.0},
    "inversion": {"steps": 3, "n_examples": 4, "n_held_out": 2, "batch": 2, "eval_every_steps": 3},
    "evaluation": {"n_edits": 2, "steps": 2, "columns": 2},
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage ran once."""
    root = tmp_path_factory.mktemp("chain")
    (root / "emuedit").symlink_to(ROOT / "emuedit")
    knobs = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, changes in SMALL.items():
        assert set(changes) <= set(knobs[section]), f"params.yaml, section {section} has no {set(changes) - set(knobs[section])}"
        knobs[section] |= changes
    (root / "params.yaml").write_text(yaml.safe_dump(knobs))
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]:
        run_stage(root, stage)
    return root


def run_stage(root: Path, stage: str) -> Any:
    station = importlib.import_module(f"emuedit.{stage}")
    return station.run(config.load(station.Params, stage, root / "params.yaml"), root)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_record_leads_back_to_its_caption(chain: Path) -> None:
    instructions = {one.id: one for one in read_folder(chain / "data/instructions", Instruction)}
    pairs = {one.id: one for one in read_folder(chain / "data/pairs", Pair, verify=True)}
    assert pairs
    for pair in pairs.values():
        told = instructions[pair.instruction_id]
        assert (pair.task, pair.instruction, pair.parent_ids) == (told.task, told.text, (told.id, told.caption_id))
        assert decode_png(pair.source).shape == decode_png(pair.target).shape == (64, 64, 3)
    verdicts = list(read_folder(chain / "data/dataset", Verdict))
    assert {one.pair_id for one in verdicts} == set(pairs)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_editor_it_leaves_edits_a_picture(chain: Path) -> None:
    editor = sampling.load(str(chain / "models/editor"))
    answer = next(read_folder(chain / "reports/evaluation", EvalRecord))
    image = image_tensors.from_uint8(decode_png(answer.source))
    out = editor.edit(image, [answer.instruction], [answer.task], [0], steps=2, s_I=1.3, s_T=3.0)
    assert out.shape == image.shape
    assert not out.equal(image)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_report_says_how_well(chain: Path) -> None:
    metrics = json.loads((chain / "reports/evaluation/metrics.json").read_text())
    knobs = yaml.safe_load((chain / "params.yaml").read_text())["evaluation"]
    for metric in ("edit_success", "clip_dir", "clip_im", "clip_out", "l1", "dino"):
        assert set(metrics[metric]) == {"identity", "emuedit"}
        for row in metrics[metric].values():
            assert list(row) == ["overall", *knobs["tasks"]]
    assert metrics["edit_success"]["identity"]["overall"] == 0.0
    assert metrics["l1"]["identity"]["overall"] == 0.0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_again_gives_the_same_data(chain: Path, tmp_path: Path) -> None:
    """Another folder, another process order, the same bytes: what left of the training can be compared by hash."""
    shutil.copytree(chain / "data/captions", tmp_path / "data/captions")
    shutil.copytree(chain / "models/router", tmp_path / "models/router")
    (tmp_path / "emuedit").symlink_to(ROOT / "emuedit")
    shutil.copy(chain / "params.yaml", tmp_path)
    for stage in ("instructions", "pairs", "dataset"):
        run_stage(tmp_path, stage)
        for path in sorted((chain / "data" / stage).iterdir()):
            assert path.read_bytes() == (tmp_path / "data" / stage / path.name).read_bytes(), path.name
