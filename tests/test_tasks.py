import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from emuedit.prompts.answer_schema import ANSWER_KEYS, answer_schema
from emuedit.tasks import HELD_OUT, TASKS, Family, Need, Region, UnknownTaskError, get_task

ROOT = Path(__file__).parents[1]


def test_the_index_of_a_task_is_its_row_in_the_table() -> None:
    assert [task.index for task in TASKS] == list(range(len(TASKS)))


def test_the_order_of_the_tasks_never_changes() -> None:
    assert " ".join(task.name for task in TASKS[:16]) == (
        "local remove add texture background global style text detect segment color depth sketch normal pose segmap"
    )
    assert [sum(task.family == family for task in TASKS[:16]) for family in ("region", "free-form", "vision")] == [5, 3, 8]


def test_held_out_tasks_have_no_row() -> None:
    assert {"superres", "contour", "inpaint", "add_detect", "cutout"} <= {task.name for task in HELD_OUT}
    assert {task.index for task in HELD_OUT} == {None}


def test_every_task_is_found_by_its_own_name() -> None:
    tasks = TASKS + HELD_OUT
    assert len({task.name for task in tasks}) == len(tasks)
    assert all(get_task(task.name) is task and task.description for task in tasks)


def test_an_unknown_name_lists_the_known_ones_and_the_closest() -> None:
    with pytest.raises(UnknownTaskError, match=r"local, remove.*add_detect, cutout; got 'segmnt'; did you mean 'segment'\?"):
        get_task("segmnt")


def test_the_facts_of_a_task_are_among_those_that_exist() -> None:
    for task in TASKS + HELD_OUT:
        assert task.family in get_args(Family)
        assert {task.original_object, task.edited_object} <= set(get_args(Need))
        assert task.region in get_args(Region)
        assert task.annotated or not task.bidirectional, "only annotators draw maps"


@pytest.mark.parametrize(
    ("task", "original_object", "edited_object"),
    [
        ("local", "required", "required"), ("remove", "required", "unused"), ("add", "unused", "required"),
        ("texture", "required", "required"), ("background", "optional", "required"), ("global", "unused", "optional"),
        ("style", "unused", "optional"), ("text", "required", "required"), ("detect", "required", "optional"),
        ("segment", "required", "optional"), ("color", "unused", "required"), ("depth", "unused", "unused"),
        ("sketch", "unused", "unused"), ("normal", "unused", "unused"), ("pose", "unused", "unused"),
        ("segmap", "unused", "unused"), ("superres", "unused", "unused"), ("inpaint", "unused", "unused"),
    ],
)  # fmt: skip
def test_the_schema_of_answers_follows_from_the_table(task: str, original_object: Need, edited_object: Need) -> None:
    row = get_task(task)
    assert (row.original_object, row.edited_object) == (original_object, edited_object)
    properties = answer_schema(task)["properties"]
    assert list(properties) == list(ANSWER_KEYS)
    for key, need in (("original_object", original_object), ("edited_object", edited_object), ("instruction", "required")):
        is_fixed, may_be_empty = properties[key].get("enum") == [""], properties[key].get("pattern", "").startswith("^.{0")
        assert (is_fixed, may_be_empty) == {"required": (False, False), "optional": (False, True), "unused": (True, False)}[need]


def test_bidirectional_tasks_and_those_that_keep_the_caption() -> None:
    assert [task.name for task in TASKS if task.bidirectional] == ["depth", "sketch", "normal", "pose", "segmap"]
    assert [task.name for task in TASKS + HELD_OUT if not task.changes_caption] == ["color"]
    assert [task.name for task in TASKS + HELD_OUT if task.reversed] == ["add"]


NEW_ROW = (
    f'    Task("polish", "region", {len(TASKS)}, "make an object shine", "required", "optional", "object"),\n'
    ")  # fmt: skip\n\nHELD_OUT"
)
NEW_PROMPT = """\
polish:
  description: The task polish makes an object shine. original_object is the object.
  verbs: [polish, shine, burnish]
  exemplars:
    - &first
      caption: a car in the street
      answer: {instruction: polish the car, original_object: car, edited_object: "", output_caption: a shiny car in the street}
    - *first
    - *first
    - *first
    - caption: a cup on a table
      answer: {instruction: shine the cup, original_object: cup, edited_object: bright cup, output_caption: a bright cup}
"""
NEW_LLM = """\
import json

class ShinyLLM:
    def write(self, messages, *, seed, temperature, top_p, schema):
        question = json.loads(messages[-1]["content"].splitlines()[-1])
        assert question["task"] == "polish" and schema["properties"]["original_object"]["pattern"].startswith("^\\\\S")
        texts = {"instruction": f"polish it, version {seed}", "original_object": "cup", "edited_object": ""}
        return json.dumps(texts | {"output_caption": f"shiny {question['caption']}"})

def shiny_llm():
    return ShinyLLM()
"""
PROGRAM = """\
from pathlib import Path

import emuedit
from emuedit.config import load
from emuedit.data.publish import publish, read_folder, scratch_folder
from emuedit.data.records import Caption, Instruction
from emuedit.data.shards import write_shard
from emuedit.editor.task_embedding import TaskEmbedding
from emuedit.stages import instructions
from emuedit.stages.dataset import DatasetParams
from emuedit.stages.evaluation import EvaluationParams
from emuedit.stages.pairs import PairsParams
from emuedit.synthesis.recipes import recipes_for
from emuedit.training.batches.mirroring import may_flip

root = Path.cwd()
assert Path(emuedit.__file__).is_relative_to(root)
table = TaskEmbedding(d_v=4, d_text=8)
assert table.names[-1] == "polish" and table.index("polish") == len(table.v) - 1
dataset = DatasetParams.model_validate({"filters": {"default": {}, "polish": {"dino": {"min": 0.5}}}})
assert dataset.filters_for("polish") == {"dino": {"min": 0.5}}
pairs = load(PairsParams, "pairs").model_dump()
pairs["recipes"]["polish"] = pairs["recipes"]["texture"]
assert len(recipes_for(PairsParams.model_validate(pairs).recipes, "polish")) == 1
assert len(recipes_for(load(PairsParams, "pairs").recipes, "polish")) == 1
evaluation = load(EvaluationParams, "evaluation").model_dump()
assert EvaluationParams.model_validate(evaluation | {"tasks": ("polish",)}).tasks == ("polish",)
assert may_flip("polish", "polish the cup")

captions = [Caption(f"cup {n}", "c.txt", n) for n in range(3)]
scratch = scratch_folder(root, "captions", "key")
write_shard(scratch / "shard-00000.parquet", captions, Caption)
publish(scratch, root / "data/captions", "captions", {}, {})
params = load(instructions.InstructionsParams, "instructions")
world = params.world.model_copy(update={"llm": "shiny:shiny_llm"})
summary = instructions.run(params.model_copy(update={"world": world, "tasks": ("polish",)}), root)
assert summary.counts == {"kept": 3, "dropped": 0, "kept_polish": 3}, summary.counts
assert {row.task for row in read_folder(root / "data/instructions", Instruction)} == {"polish"}
"""


@pytest.mark.slow
def test_a_new_task_is_one_row_and_one_prompt_file(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "emuedit", tmp_path / "emuedit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    tasks = tmp_path / "emuedit/tasks.py"
    table, end = tasks.read_text(), ")  # fmt: skip\n\nHELD_OUT"
    assert table.count(end) == 1
    tasks.write_text(table.replace(end, NEW_ROW))
    (tmp_path / "emuedit/prompts/polish.yaml").write_text(NEW_PROMPT)
    (tmp_path / "shiny.py").write_text(NEW_LLM)
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
