"""The templates of instructions: enough of them, split once and for all, and none that makes the instructions of other people."""

import json
import random
import re

import pytest
import yaml

from emuedit.tasks import ALL_TASKS
from tests.repository import ROOT
from toyworld.edits import phrasings
from toyworld.edits.caption_edits import write_edit
from toyworld.edits.caption_parser import parse
from toyworld.edits.exact_edits import build_edits
from toyworld.edits.phrasings import TemplateSplit, template_table
from toyworld.edits.rule_llm import RuleLLM, held_out_wordings
from toyworld.scenes.caption_grammar import POSITION_PHRASES
from toyworld.scenes.palette import BACKGROUNDS, COLOURS, KINDS, LETTERS, POSES, TEXTURES

NOUN = rf"(?:{'|'.join(KINDS)}|person (?:with )?(?:{'|'.join(POSES)})|card with the letter [a-z])"
OBJECT = rf"(?:(?:big|small) )?(?:{'|'.join(COLOURS)}) (?:(?:{'|'.join(TEXTURES)}) )?{NOUN}"
FIELDS = {
    "the": rf"the (?:(?:{'|'.join(COLOURS)}) )?{NOUN}",
    "a_new": rf"an? {OBJECT}(?: (?:{'|'.join(phrase for phrases in POSITION_PHRASES.values() for phrase in phrases)}))?",
    "colour": "|".join(COLOURS),
    "texture": "|".join(TEXTURES),
    "kind": "|".join(KINDS),
    "background": "|".join((*BACKGROUNDS, "brick wall", "the sky")),
    "a_style": "|".join(phrasings.A_STYLE.values()),
    "letter": "|".join(LETTERS),
    "old": "|".join(LETTERS),
    "caption": rf"an? {OBJECT}.*",
}


def pattern(template: str) -> re.Pattern[str]:
    """Matches what the template makes, whatever it is filled with."""
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(f"(?:{FIELDS[part]})" if i % 2 else re.escape(part) for i, part in enumerate(parts)), re.IGNORECASE)


def all_templates(split: TemplateSplit) -> set[str]:
    table = template_table(split)
    return {template for templates in (*table.by_case.values(), *table.shared.values()) for template in templates}


@pytest.mark.parametrize("task", ALL_TASKS)
def test_every_task_has_forty_templates_of_which_about_a_quarter_is_held_out(task: str) -> None:
    training, held_out = (template_table(split).cases_of(task) for split in phrasings.TEMPLATE_SPLITS)
    n_training, n_held_out = (sum(map(len, cases.values())) for cases in (training, held_out))
    assert n_training + n_held_out >= 40
    assert 0.2 < n_held_out / (n_training + n_held_out) < 0.3
    assert all(len(templates) >= 5 for templates in training.values()), "every case has its wordings"
    assert all(held_out[case] for case in training), "every case is measured"


def test_a_template_is_in_one_split() -> None:
    assert not all_templates("training") & all_templates("held_out")
    with pytest.raises(ValueError, match="want one of the template splits training, held_out; got 'train'"):
        template_table("train")  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_data_use_training_templates_only() -> None:
    training = [pattern(template) for template in all_templates("training")]
    held_out = [pattern(template) for template in all_templates("held_out")]
    texts = [text for task in ALL_TASKS for text in build_edits(task, "train", 0, 20).instructions]
    caption = parse("a big red star on the left and a small blue ring at the top on grass")
    assert caption is not None
    texts += [
        write_edit(task, caption, random.Random(i))["instruction"] for task in ("remove", "add", "sketch") for i in range(60)
    ]
    for text in texts:
        assert any(made_by.fullmatch(text) for made_by in training), text
    assert sum(any(made_by.fullmatch(text) for made_by in held_out) for text in texts) == 0


def test_the_llm_of_the_measurements_uses_held_out_templates_only() -> None:
    held_out = [pattern(template) for template in all_templates("held_out")]
    message = "Go.\n" + json.dumps({"task": "remove", "caption": "a big red star on the left on grass"})
    texts = {
        json.loads(held_out_wordings().write([{"role": "user", "content": message}], seed=seed))["instruction"]
        for seed in range(40)
    }
    assert len(texts) > 5
    assert all(any(made_by.fullmatch(text) for made_by in held_out) for text in texts)
    assert RuleLLM().templates == "training"


@pytest.mark.slow
def test_no_template_makes_an_instruction_of_other_people() -> None:
    lists = yaml.safe_load((ROOT / "bench/wordings/other_people.yaml").read_text())
    assert set(lists) == set(ALL_TASKS)
    texts = [text.rstrip(".?! ") for texts in lists.values() for text in texts]
    assert len(texts) >= 190
    assert len({text.casefold() for text in texts}) == len(texts)
    for template in all_templates("training") | all_templates("held_out"):
        made_by = pattern(template.rstrip(".?! "))
        assert not [text for text in texts if made_by.fullmatch(text)], template


def test_templates_of_two_tasks_are_known_as_such() -> None:
    owners = [task for (task, _), templates in template_table("training").shared.items() if "make it darker" in templates]
    assert owners == ["color", "global"]
