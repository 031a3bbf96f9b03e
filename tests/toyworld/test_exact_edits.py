"""Every task's exact edits: they change what they say, and nothing that they do not."""

import json
import random
from collections import defaultdict

import numpy as np
import pytest

from emuedit.models.language_model import LLM, load_llm
from emuedit.tasks import HELD_OUT, TASKS
from toyworld.edits import exact_targets
from toyworld.edits.caption_parser import parse
from toyworld.edits.exact_edits import Edits, edits, names
from toyworld.edits.exact_judge import judge
from toyworld.edits.rule_llm import KEYS, RuleLLM, UnsuitedError, edit, spoilt
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions, captions
from toyworld.scenes.palette import CARD, COLOURS, MASK_RGB, PERSON
from toyworld.scenes.scene import PIXEL_ART, numbers, scenes

EVERY = (*names(), *(t.name for t in HELD_OUT))


@pytest.fixture(scope="module")
def made() -> dict[str, Edits]:
    return {name: edits(name, "held_out", 0, 60) for name in EVERY}


def test_there_are_sixteen() -> None:
    assert names() == tuple(t.name for t in TASKS)
    assert len(names()) == 16


@pytest.mark.parametrize("name", EVERY)
def test_every_edit_changes_something_and_is_no_alternative(made: dict[str, Edits], name: str) -> None:
    some = made[name]
    assert (some.before != some.exact).any((1, 2, 3)).all()
    assert (some.alternatives != some.exact[:, None]).any((2, 3, 4)).all(), "an alternative is the right answer"
    assert all(text and "{" not in text for text in some.instructions)
    assert len(set(some.instructions)) > (2 if name in ("superres", "contour", "inpaint") else 5)


@pytest.mark.parametrize("name", EVERY)
def test_the_oracle_takes_the_exact_result_and_refuses_the_input_and_every_alternative(made: dict[str, Edits], name: str) -> None:
    some = made[name]
    assert judge(some.exact, some.before, some.exact, some.alternatives).success.all()
    assert not judge(some.before, some.before, some.exact, some.alternatives).success.any()
    for k in range(some.alternatives.shape[1]):
        assert not judge(some.alternatives[:, k], some.before, some.exact, some.alternatives).success.any()


@pytest.mark.parametrize("name", ["local", "remove", "add", "texture", "text", "detect", "segment"])
def test_region_edits_leave_the_rest_alone(made: dict[str, Edits], name: str) -> None:
    changed = (made[name].before != made[name].exact).any(-1).mean((1, 2))
    assert changed.max() < 0.45
    if name != "texture":
        assert changed.mean() < 0.2


def test_letters_and_poses_are_spread_evenly_and_never_in_pixel_art() -> None:
    for name, kind, n_variants in (("text", CARD, 8), ("pose", PERSON, 4)):
        source = edits(name, "train", 0, 800).source
        row, slot = np.nonzero(source.kind == kind)
        share = np.bincount(source.variant[row, slot], minlength=n_variants) / len(row)
        assert np.abs(share - 1 / n_variants).max() < 0.05, name
        assert not (source.style == PIXEL_ART).any()


def test_every_other_colour_is_an_alternative() -> None:
    some = edits("local", "held_out", 0, 60)
    recoloured = [n for n, text in enumerate(some.instructions) if any(colour in text.split()[-1] for colour in COLOURS)]
    assert len(recoloured) > 15
    for n in recoloured[:5]:
        assert len({picture.tobytes() for picture in some.alternatives[n]}) == len(COLOURS) - 1


def test_captions_keep_the_words_for_what_an_edit_leaves_alone() -> None:
    for name in ("remove", "add", "local", "texture"):
        some = edits(name, "held_out", 0, 60)
        for before, after in zip(some.input_captions, some.output_captions, strict=True):
            a, b = parse(before), parse(after)
            assert a is not None
            assert b is not None
            assert (a.ground, a.weather, a.style) == (b.ground, b.weather, b.style)
            kept = set(a.things) & set(b.things)
            assert len(kept) >= max(len(a.things), len(b.things)) - 1


def test_edits_depend_on_their_numbers_only() -> None:
    whole, part = edits("local", "train", 0, 30), edits("local", "train", 20, 10)
    np.testing.assert_array_equal(whole.exact[20:], part.exact)
    assert whole.instructions[20:] == part.instructions


def test_add_is_remove_in_reverse(made: dict[str, Edits]) -> None:
    np.testing.assert_array_equal(made["add"].before, made["remove"].exact)
    np.testing.assert_array_equal(made["add"].exact, made["remove"].before)


def test_segment_paints_the_mask_and_only_the_mask() -> None:
    some = scenes(numbers("held_out", 0, 50))
    some = some[some.present[:, 0]]
    known = render.truth(some)
    zeros = np.zeros(len(some), int)
    painted = (exact_targets.segment(known, zeros) == (MASK_RGB * 255).astype(np.uint8)).all(-1)
    np.testing.assert_array_equal(painted, known.masks[:, 0])
    boxed = exact_targets.detect(known, zeros)
    for n, (x0, y0, x1, y1) in enumerate(known.boxes[:, 0].astype(int)):
        np.testing.assert_array_equal(boxed[n, y0:y1, x0:x1], known.images[n, y0:y1, x0:x1])
        assert (boxed[n, y0 + 1, x0 - 1] == (255, 0, 255)).all()


def test_keypoints_lie_on_the_figure_and_on_its_skeleton() -> None:
    some = scenes(numbers("held_out", 0, 120))
    known, drawn, joints = render.truth(some), exact_targets.pose(some), exact_targets.keypoints(some)
    person = some.kind == PERSON
    assert person.sum() > 5
    assert np.isfinite(joints[person]).all()
    assert np.isnan(joints[~person]).all()
    for n, slot in np.argwhere(person):
        for x, y in joints[n, slot].round().astype(int):
            assert known.masks[n, slot, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any()
            assert drawn[n, y, x].any()
    assert not drawn[~person.any(1)].any()


def test_filters_do_what_they_are_called() -> None:
    before = render.images(scenes(numbers("held_out", 0, 20)))
    n = len(before)

    def after(name: str) -> np.ndarray:
        return exact_targets.colour_filter(before, np.full(n, exact_targets.FILTERS.index(name))).astype(float)

    p = before.astype(float)
    assert (after("brighten").mean((1, 2, 3)) > p.mean((1, 2, 3))).all()
    assert (after("darken").mean((1, 2, 3)) < p.mean((1, 2, 3))).all()
    assert (after("more contrast").std((1, 2, 3)) >= after("less contrast").std((1, 2, 3))).all()
    assert (np.ptp(after("desaturate"), axis=-1).mean((1, 2)) < np.ptp(p, axis=-1).mean((1, 2))).all()
    edges = np.abs(np.diff(p, axis=1)).mean((1, 2, 3))
    assert (np.abs(np.diff(after("blur"), axis=1)).mean((1, 2, 3)) < edges).all()
    assert (np.abs(np.diff(after("sharpen"), axis=1)).mean((1, 2, 3)) > edges).all()
    np.testing.assert_array_equal(after("hue"), p[..., [2, 0, 1]])


def test_some_wordings_belong_to_several_tasks() -> None:
    meant: dict[str, set[str]] = defaultdict(set)
    for name in names():
        for text in edits(name, "train", 0, 400).instructions:
            meant[text].add(name)
    shared = {text: tasks for text, tasks in meant.items() if len(tasks) > 1}
    pairs = {tuple(sorted(tasks)) for tasks in shared.values()}
    assert {("color", "global"), ("detect", "segment"), ("sketch", "style"), ("background", "global")} <= pairs
    assert ("local", "texture") not in pairs


def test_captions_can_be_understood_and_said_again() -> None:
    for caption in captions("held_out", 0, 500):
        assert str(parse(caption)) == caption
    assert parse("a photograph of two dogs") is None


def test_captions_vary_by_purpose_and_not_by_call() -> None:
    some = scenes(numbers("train", 0, 100))
    assert all_captions(some) == all_captions(some)
    assert sum(a != b for a, b in zip(all_captions(some), all_captions(some, "other"), strict=True)) > 60


def ask(llm: LLM, task: str, caption: str, seed: int = 0) -> str:
    return llm.write([{"role": "user", "content": "Go.\n" + json.dumps({"task": task, "caption": caption})}], seed=seed)


def test_the_writer_answers_in_json_from_the_last_message() -> None:
    llm = load_llm("toyworld.edits.rule_llm:toy_llm")
    assert isinstance(llm, LLM)
    caption = "a big red star on the left and a small blue ring at the top on grass"
    answer = json.loads(ask(RuleLLM(bad_share=0), "remove", caption))
    assert tuple(answer) == KEYS
    assert answer["original_object"] in ("red star", "blue ring")
    assert answer["original_object"].split()[-1] not in answer["output_caption"]
    assert answer["output_caption"].endswith("on grass")


def test_the_writer_errs_at_the_known_rate_and_always_alike() -> None:
    llm = RuleLLM(bad_share=0.25)
    caption = "a big red star on the left on grass"
    good = 0
    for seed in range(600):
        text = ask(llm, "local", caption, seed)
        assert text == ask(llm, "local", caption, seed)
        try:
            answer = json.loads(text)
            good += tuple(answer) == KEYS and all(isinstance(v, str) for v in answer.values()) and bool(answer["instruction"])
        except json.JSONDecodeError:
            pass
    assert abs(good / 600 - 0.75) < 0.07


def test_a_spoilt_answer_is_never_a_good_one() -> None:
    answer = dict.fromkeys(KEYS, "words")
    texts = [spoilt(answer, random.Random(seed)) for seed in range(200)]
    assert json.dumps(answer) not in texts
    assert len(set(texts)) > 7  # prose, cut off, each of the keys lost, nothing said, a refusal


def test_the_writer_keeps_to_what_can_be_painted() -> None:
    said = parse("a small red ring on the left and a small white star on the right on grass")
    assert said is not None
    for seed in range(150):
        assert "green" not in edit("local", said, random.Random(seed))["output_caption"]
        assert "green" not in edit("add", said, random.Random(seed))["output_caption"]
        outcome = edit("background", said, random.Random(seed))["edited_object"]
        assert outcome not in ("brick", "snow", "sky", "sand", "grass")  # red or white would vanish there


def test_the_writer_speaks_of_every_task_and_refuses_what_cannot_be() -> None:
    rich = "a card with the letter A"  # not of the language: no colour, no place
    assert ask(RuleLLM(0), "text", rich).startswith("I do not parse")
    things = "a red card with the letter A on the left, a blue person waving on the right and a big green ring at the top"
    caption = f"{things} on sand"
    for name in names():
        if name == "add":
            continue
        answer = json.loads(ask(RuleLLM(0), name, caption))
        assert answer["instruction"], name
        assert answer["output_caption"] != caption or name == "color"
    said = parse(caption)
    assert said is not None
    with pytest.raises(UnsuitedError, match="full"):
        edit("add", said, random.Random(0))


@pytest.mark.parametrize(
    ("task", "original", "edited"),
    [
        ("local", {"red star", "blue ring"}, None),
        ("remove", {"red star", "blue ring"}, {""}),
        ("add", {""}, None),
        ("texture", {"red striped star"}, {"red star", "red dotted star", "red checkered star"}),
        ("background", {"red star, blue ring"}, {"snow", "stone", "wood", "sand"}),
        ("global", {""}, None),
        ("color", {""}, set(exact_targets.FILTERS)),
        ("detect", {"red star", "blue ring"}, {"red star", "blue ring"}),
        ("segment", {"red star", "blue ring"}, {"red star", "blue ring"}),
        ("depth", {""}, {""}),
    ],
)
def test_the_writer_names_objects_as_a_detector_knows_them(task: str, original: set[str], edited: set[str] | None) -> None:
    said = parse("a big red striped star on the left and a small blue ring at the top on grass")
    assert said is not None
    answers = [edit(task, said, random.Random(seed)) for seed in range(80)]
    assert {answer["original_object"] for answer in answers} <= original
    found = {answer["edited_object"] for answer in answers}
    assert found <= edited if edited is not None else all(found)


def test_the_writer_goes_from_maps_to_pictures_when_asked() -> None:
    caption = "a red person waving on the left on sand"
    for task in ("depth", "sketch", "normal", "pose", "segmap"):
        asked = "Go.\n" + json.dumps({"task": task, "caption": caption, "direction": "from_map"})
        back = json.loads(RuleLLM(0).write([{"role": "user", "content": asked}], seed=1))
        there = json.loads(ask(RuleLLM(0), task, caption))
        assert back["instruction"].endswith(caption)
        assert caption not in there["instruction"]
        assert back["output_caption"] == there["output_caption"]
