"""What the params of a photo world keep and reject, and the regions that they edit."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from emuedit import config
from emuedit.data.filters import apply_filters
from emuedit.data.records import Instruction
from emuedit.models.detector import Detections
from emuedit.runtime import Runtime
from emuedit.stages.dataset import DatasetParams
from emuedit.stages.pairs import PairsParams
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.recipes import recipes_for
from emuedit.synthesis.shard_maker import ShardMaker
from emuedit.tasks import TASKS
from emuedit.worlds.photo_world import MODELS, PRESETS, PhotoWorld, render
from tests.repository import ROOT
from tests.synthesis.fake_segmenter import FakeSegmenter

GOOD = {
    "clip_source": 0.28, "clip_target": 0.28, "clip_direction": 0.3, "clip_image": 0.85, "source_object_before": 0.6,
    "target_object_after": 0.6, "source_object_after": 0.1, "object_left_in_mask": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def params_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The params of a photo world."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "captions.txt").write_text("a red car in a street\na dog at a lake\n")
    models = MODELS | {"base_model": PRESETS["sd15-512"].base_model}
    text, _ = render(PhotoWorld("photos", "captions.txt", "caption", "sd15-512", models, "benchmark"), folder)
    (folder / "params.yaml").write_text(text)
    return folder / "params.yaml"


@pytest.mark.parametrize(
    ("task", "scores", "reasons"),
    [
        ("background", {}, []),
        ("background", {"source_object_before": None}, ["source_object_before_missing"]),  # two unrelated images
        ("style", {"source_object_before": None}, []),
        ("add", {}, []),
        ("add", {"clip_direction": 0.0, "clip_image": 0.999}, ["clip_direction_min"]),  # nothing was added
        ("remove", {}, []),
        ("remove", {"clip_direction": 0.0, "clip_image": 0.999}, ["clip_direction_min"]),
        ("remove", {"object_left_in_mask": 0.9}, ["object_left_in_mask_max"]),
        ("detect", {"clip_direction": None}, []),
        ("detect", {"clip_source": 0.1}, ["clip_source_min"]),
        ("segment", {"clip_source": 0.1}, ["clip_source_min"]),
    ],
)
def test_filters_reject_pairs_without_a_correct_edit(
    params_file: Path, task: str, scores: dict[str, float | None], reasons: list[str]
) -> None:
    columns = {f"score_{name}": pa.array([value], pa.float64()) for name, value in (GOOD | scores).items()}
    filters = config.load(DatasetParams, "dataset", params_file).filters
    result = apply_filters(pa.table({"task": [task], **columns}), filters)
    assert [reason for reason, failed in zip(result.reasons, result.failed[:, 0], strict=True) if failed] == reasons


def test_an_edit_of_an_object_has_a_mask(params_file: Path) -> None:
    """Also of the task `text`, which docs/own-data.md says can be added: the whole image was generated again."""
    params = config.load(PairsParams, "pairs", params_file)
    edited = [task.name for task in TASKS if task.region == "object" and not task.annotated]
    assert "text" in edited
    assert [task for task in edited if any(recipe.mask is None for recipe in recipes_for(params.recipes, task))] == []


class TwoCandles:
    """Detects two candles in every image."""

    def detect(self, images: torch.Tensor, *_: Any) -> list[Detections]:
        boxes_px = torch.tensor([[4.0, 20, 12, 40], [44, 20, 52, 40]])
        return [Detections(boxes_px, torch.tensor([0.9, 0.6]), torch.zeros(2, dtype=torch.int64)) for _ in images]


@pytest.mark.slow
def test_all_objects_of_a_name_are_edited(params_file: Path) -> None:
    """For "add candles" only one of them was removed from the target, so that the source showed the others."""
    toy, photo = (config.load(PairsParams, "pairs", path) for path in (ROOT / "params.yaml", params_file))
    params = toy.model_copy(update={"steps": 2, "all_instances": photo.all_instances})
    models = ModelSet(params.world, ROOT, Runtime("cpu", "float32"))
    models.detector, models.segmenter = TwoCandles(), FakeSegmenter()  # type: ignore[assignment]
    captions, objects = ("a red star and a blue ring on grass", "a red star on grass"), ("candles", None)
    instructions = [
        Instruction("c0", "add", "add candles", *captions[::-1], *objects[::-1], True, 0, "test", ""),
        *(
            Instruction("c0", task, "change them", *captions, *objects, False, 0, "test", "")
            for task in ("remove", "local", "texture")
        ),
    ]
    maker = ShardMaker(instructions, models, params, None)
    jobs = maker._jobs(maker.locate(), Counter())
    assert [job.instruction.task for job in jobs] == ["add", "remove", "local", "texture"]
    for job in jobs:
        assert float(job.M[0, 25:35, 6:10].min()) > 0.5, job.instruction.task
        assert float(job.M[0, 25:35, 46:50].min()) > 0.5, job.instruction.task
