"""The example of `judge.yaml` in the docs, and what an entry of a task replaces."""

from pathlib import Path

import yaml

from emuedit.metrics.judge_file import JudgeFile
from emuedit.metrics.similarity_judge import JudgeBounds
from emuedit.worlds.photo_world import MODELS

PAGE = (Path(__file__).parents[2] / "docs/own-data.md").read_text()


def test_the_documented_file_has_the_defaults() -> None:
    (text,) = [block for block in PAGE.split("```yaml\n")[1:] if block.startswith("clip:")]
    judge = JudgeFile.model_validate(yaml.safe_load(text.partition("```")[0]))
    assert (judge.clip, judge.dino) == (MODELS["clip"], MODELS["dino"])
    assert judge.model_fields_set == {"clip", "dino", "size", "bounds", "task_bounds"}
    assert (judge.size, judge.bounds) == (JudgeFile(clip="a/b", dino="c/d").size, JudgeBounds())
    assert judge.bounds.model_fields_set == set(JudgeBounds.model_fields)


def test_a_bound_that_a_task_omits_has_its_default_not_the_value_of_bounds() -> None:
    judge = JudgeFile.model_validate(
        {"clip": "a/b", "dino": "c/d", "bounds": {"min_dino": 0.9}, "task_bounds": {"remove": {"min_gain": 0.08}}}
    )
    assert judge.bounds_of("remove") == JudgeBounds(min_gain=0.08)
    assert judge.bounds_of("local") == JudgeBounds(min_dino=0.9)
