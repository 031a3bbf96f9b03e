"""Exact edits of every task change what the instruction asks for and nothing else. The rule-based LLM writes edits."""

import json
import random
from collections import defaultdict

import numpy as np
import pytest

from emuedit.models.language_model import LLM
from emuedit.models.llm_loading import load_llm
from emuedit.tasks import HELD_OUT, TASKS, UnknownTaskError
from toyworld.edits import exact_targets, toy_tasks
from toyworld.edits.caption_edits import KEYS, UnsuitableCaptionError, write_edit
from toyworld.edits.caption_parser import parse
from toyworld.edits.exact_edits import Edits, build_edits
from toyworld.edits.exact_judge import judge
from toyworld.edits.rule_llm import RuleLLM, corrupt_answer
from toyworld.edits.scene_changes import CHANGES
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions, captions
from toyworld.scenes.palette import CARD, COLOURS, MASK_RGB, PERSON
from toyworld.scenes.scene import PIXEL_ART, generate_scenes, scene_numbers

ALL_TASKS = toy_tasks.TRAINED + toy_tasks.HELD_OUT


@pytest.fixture(scope="module")
def edits_of() -> dict[str, Edits]:
    """Task -> 12 held-out edits."""
    return {task: build_edits(task, "held_out", 0, 12) for task in ALL_TASKS}


def test_the_toy_world_has_tasks_of_the_table_in_its_order() -> None:
    assert tuple(task.name for task in TASKS if task.name in toy_tasks.TRAINED) == toy_tasks.TRAINED
    assert set(toy_tasks.HELD_OUT) <= {task.name for task in HELD_OUT}


def test_a_task_that_the_toy_world_lacks_is_named() -> None:
    with pytest.raises(UnknownTaskError, match=r"want a task of the toy world, local, .*; got 'recolor'; docs/architecture.md"):
        build_edits("recolor", "train", 0, 1)
    caption = parse("a big red star on the left on sand")
    assert caption is not None
    with pytest.raises(UnknownTaskError, match="got 'superres'"):
        write_edit("superres", caption, random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("task", ALL_TASKS)
def test_edits_change_the_image_and_differ_from_their_alternatives(edits_of: dict[str, Edits], task: str) -> None:
    edits = edits_of[task]
    assert (edits.before != edits.exact).any((1, 2, 3)).all()
    assert (edits.alternatives != edits.exact[:, None]).any((2, 3, 4)).all(), "an alternative equals the exact result"
    assert all(text and "{" not in text for text in edits.instructions)
    assert len(set(edits.instructions)) > (2 if task in ("superres", "contour", "inpaint", "cutout") else 5)


@pytest.mark.slow
@pytest.mark.parametrize("task", ALL_TASKS)
def test_judge_accepts_the_exact_result_and_rejects_input_and_alternatives(edits_of: dict[str, Edits], task: str) -> None:
    edits = edits_of[task]
    assert judge(edits.exact, edits.before, edits.exact, edits.alternatives).success.all()
    assert not judge(edits.before, edits.before, edits.exact, edits.alternatives).success.any()
    n_alternatives = edits.alternatives.shape[1]
    for k in range(0, n_alternatives, max(1, n_alternatives // 4)):  # maps have sixty
        assert not judge(edits.alternatives[:, k], edits.before, edits.exact, edits.alternatives).success.any()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["contour", "depth", "sketch", "normal", "pose", "segmap"])
def test_a_map_without_the_objects_is_refused(edits_of: dict[str, Edits], task: str) -> None:
    """A black picture was accepted as the contours of nearly every picture, because most of a right map is black."""
    edits = edits_of[task]
    assert not edits.judge(np.zeros_like(edits.exact)).success.any()
    assert not edits.judge(edits.alternatives[:, 3 if task == "contour" else 0]).success.any()


@pytest.mark.parametrize("task", ["local", "remove", "add", "texture", "text", "detect", "segment"])
def test_region_edits_change_a_small_area(edits_of: dict[str, Edits], task: str) -> None:
    changed_share = (edits_of[task].before != edits_of[task].exact).any(-1).mean((1, 2))
    assert changed_share.max() < 0.45
    if task != "texture":
        assert changed_share.mean() < 0.2


@pytest.mark.slow
def test_letters_and_poses_are_uniform_and_never_in_pixel_art() -> None:
    for task, kind, n_variants in (("text", CARD, 8), ("pose", PERSON, 4)):
        source = build_edits(task, "train", 0, 800).source
        row, slot = np.nonzero(source.kind == kind)
        share = np.bincount(source.variant[row, slot], minlength=n_variants) / len(row)
        assert np.abs(share - 1 / n_variants).max() < 0.05, task
        assert not (source.style == PIXEL_ART).any()


@pytest.mark.slow
def test_all_other_colours_are_alternatives_of_a_recolouring() -> None:
    edits = build_edits("local", "held_out", 0, 60)
    recolourings = [n for n, text in enumerate(edits.instructions) if any(colour in text.split()[-1] for colour in COLOURS)]
    assert len(recolourings) > 15
    for n in recolourings[:5]:
        assert len({image.tobytes() for image in edits.alternatives[n]}) == len(COLOURS) - 1


@pytest.mark.slow
def test_captions_keep_the_words_for_unedited_parts() -> None:
    for task in ("remove", "add", "local", "texture"):
        edits = build_edits(task, "held_out", 0, 60)
        for input_caption, output_caption in zip(edits.input_captions, edits.output_captions, strict=True):
            before, after = parse(input_caption), parse(output_caption)
            assert before is not None
            assert after is not None
            assert (before.background, before.weather, before.style) == (after.background, after.weather, after.style)
            kept_objects = set(before.objects) & set(after.objects)
            assert len(kept_objects) >= max(len(before.objects), len(after.objects)) - 1


def test_edits_depend_only_on_their_scene_numbers() -> None:
    all_edits, last_edits = build_edits("local", "train", 0, 30), build_edits("local", "train", 20, 10)
    np.testing.assert_array_equal(all_edits.exact[20:], last_edits.exact)
    assert all_edits.instructions[20:] == last_edits.instructions


def test_add_is_the_reverse_of_remove(edits_of: dict[str, Edits]) -> None:
    np.testing.assert_array_equal(edits_of["add"].before, edits_of["remove"].exact)
    np.testing.assert_array_equal(edits_of["add"].exact, edits_of["remove"].before)


def test_segment_and_detect_mark_exactly_the_object() -> None:
    scenes = generate_scenes(scene_numbers("held_out", 0, 50))
    scenes = scenes[scenes.present[:, 0]]
    truth = render.truth(scenes)
    slots = np.zeros(len(scenes), int)
    is_mask_colour = (exact_targets.segment(truth, slots) == (MASK_RGB * 255).astype(np.uint8)).all(-1)
    np.testing.assert_array_equal(is_mask_colour, truth.masks[:, 0])
    boxed = exact_targets.detect(truth, slots)
    for n, (x0, y0, x1, y1) in enumerate(truth.boxes[:, 0].astype(int)):
        np.testing.assert_array_equal(boxed[n, y0:y1, x0:x1], truth.images[n, y0:y1, x0:x1])
        assert (boxed[n, y0 + 1, x0 - 1] == (255, 0, 255)).all()


def test_keypoints_lie_on_the_figure_and_on_its_skeleton() -> None:
    scenes = generate_scenes(scene_numbers("held_out", 0, 120))
    truth, skeletons, joints = render.truth(scenes), exact_targets.pose(scenes), exact_targets.keypoints(scenes)
    is_person = scenes.kind == PERSON
    assert is_person.sum() > 5
    assert np.isfinite(joints[is_person]).all()
    assert np.isnan(joints[~is_person]).all()
    for n, slot in np.argwhere(is_person):
        for x, y in joints[n, slot].round().astype(int):
            assert truth.masks[n, slot, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any()
            assert skeletons[n, y, x].any()
    assert not skeletons[~is_person.any(1)].any()


def test_colour_filters_have_the_effect_of_their_names() -> None:
    images = render.images(generate_scenes(scene_numbers("held_out", 0, 20)))
    n_images = len(images)

    def apply(name: str) -> np.ndarray:
        filter_ids = np.full(n_images, exact_targets.FILTERS.index(name))
        return exact_targets.apply_colour_filter(images, filter_ids).astype(float)

    before = images.astype(float)
    assert (apply("brighten").mean((1, 2, 3)) > before.mean((1, 2, 3))).all()
    assert (apply("darken").mean((1, 2, 3)) < before.mean((1, 2, 3))).all()
    assert (apply("more contrast").std((1, 2, 3)) >= apply("less contrast").std((1, 2, 3))).all()
    assert (np.ptp(apply("desaturate"), axis=-1).mean((1, 2)) < np.ptp(before, axis=-1).mean((1, 2))).all()
    edge_strength = np.abs(np.diff(before, axis=1)).mean((1, 2, 3))
    assert (np.abs(np.diff(apply("blur"), axis=1)).mean((1, 2, 3)) < edge_strength).all()
    assert (np.abs(np.diff(apply("sharpen"), axis=1)).mean((1, 2, 3)) > edge_strength).all()
    np.testing.assert_array_equal(apply("hue"), before[..., [2, 0, 1]])


@pytest.mark.slow
def test_some_instructions_belong_to_several_tasks() -> None:
    tasks_of_instruction: dict[str, set[str]] = defaultdict(set)
    for task in toy_tasks.TRAINED:
        with pytest.MonkeyPatch.context() as patch:
            if task in CHANGES:  # what is said about changes of scenes does not depend on pixels
                patch.setattr(render, "images", lambda scenes: np.zeros((len(scenes), 1, 1, 3), np.uint8))
            instructions = build_edits(task, "train", 0, 300).instructions
        for text in instructions:
            tasks_of_instruction[text].add(task)
    shared_by = {tuple(sorted(tasks)) for tasks in tasks_of_instruction.values() if len(tasks) > 1}
    assert {("color", "global"), ("detect", "segment"), ("sketch", "style"), ("background", "global")} <= shared_by
    assert ("local", "texture") not in shared_by


def test_parsed_captions_print_the_original_text() -> None:
    for caption in captions("held_out", 0, 500):
        assert str(parse(caption)) == caption
    assert parse("a photograph of two dogs") is None


def test_captions_depend_on_the_purpose_and_not_on_the_call() -> None:
    scenes = generate_scenes(scene_numbers("train", 0, 100))
    assert all_captions(scenes) == all_captions(scenes)
    assert sum(a != b for a, b in zip(all_captions(scenes), all_captions(scenes, "other"), strict=True)) > 60


def ask(llm: LLM, task: str, caption: str, seed: int = 0) -> str:
    return llm.write([{"role": "user", "content": "Go.\n" + json.dumps({"task": task, "caption": caption})}], seed=seed)


def test_llm_answers_the_last_message_in_json() -> None:
    llm = load_llm("toyworld.edits.rule_llm:toy_llm")
    assert isinstance(llm, LLM)
    caption = "a big red star on the left and a small blue ring at the top on grass"
    answer = json.loads(ask(RuleLLM(bad_answer_rate=0), "remove", caption))
    assert tuple(answer) == KEYS
    assert answer["original_object"] in ("red star", "blue ring")
    assert answer["original_object"].split()[-1] not in answer["output_caption"]
    assert answer["output_caption"].endswith("on grass")


def test_llm_gives_bad_answers_reproducibly_at_the_set_rate() -> None:
    llm = RuleLLM(bad_answer_rate=0.25)
    caption = "a big red star on the left on grass"
    n_good = 0
    for seed in range(600):
        text = ask(llm, "local", caption, seed)
        assert text == ask(llm, "local", caption, seed)
        try:
            answer = json.loads(text)
            n_good += tuple(answer) == KEYS and all(isinstance(v, str) for v in answer.values()) and bool(answer["instruction"])
        except json.JSONDecodeError:
            pass
    assert abs(n_good / 600 - 0.75) < 0.07


def test_a_corrupted_answer_is_never_good() -> None:
    answer = dict.fromkeys(KEYS, "words")
    texts = [corrupt_answer(answer, random.Random(seed)) for seed in range(200)]
    assert json.dumps(answer) not in texts
    assert len(set(texts)) > 7  # prose, truncation, four missing keys, an empty instruction, a refusal


def test_llm_chooses_only_colours_that_are_visible_on_the_background() -> None:
    caption = parse("a small red ring on the left and a small white star on the right on grass")
    assert caption is not None
    for seed in range(150):
        assert "green" not in write_edit("local", caption, random.Random(seed))["output_caption"]
        assert "green" not in write_edit("add", caption, random.Random(seed))["output_caption"]
        new_background = write_edit("background", caption, random.Random(seed))["edited_object"]
        # Grass is the old background. On the others red or white has too little contrast.
        assert new_background not in ("brick", "snow", "sky", "sand", "grass")


def test_llm_writes_edits_for_all_tasks_and_refuses_impossible_ones() -> None:
    outside_grammar = "a card with the letter A"  # no colour, no position
    assert ask(RuleLLM(0), "text", outside_grammar).startswith("I do not parse")
    objects = "a red card with the letter A on the left, a blue person waving on the right and a big green ring at the top"
    caption = f"{objects} on sand"
    for task in toy_tasks.TRAINED:
        if task == "add":
            continue
        answer = json.loads(ask(RuleLLM(0), task, caption))
        assert answer["instruction"], task
        assert answer["output_caption"] != caption or task == "color"
    parsed_caption = parse(caption)
    assert parsed_caption is not None
    with pytest.raises(UnsuitableCaptionError, match="full"):
        write_edit("add", parsed_caption, random.Random(0))


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
def test_llm_names_objects_in_the_words_of_the_detector(task: str, original: set[str], edited: set[str] | None) -> None:
    caption = parse("a big red striped star on the left and a small blue ring at the top on grass")
    assert caption is not None
    answers = [write_edit(task, caption, random.Random(seed)) for seed in range(80)]
    assert {answer["original_object"] for answer in answers} <= original
    edited_objects = {answer["edited_object"] for answer in answers}
    assert edited_objects <= edited if edited is not None else all(edited_objects)


def test_llm_writes_edits_from_map_to_image_on_request() -> None:
    caption = "a red person waving on the left on sand"
    for task in ("depth", "sketch", "normal", "pose", "segmap"):
        request = "Go.\n" + json.dumps({"task": task, "caption": caption, "direction": "from_map"})
        from_map = json.loads(RuleLLM(0).write([{"role": "user", "content": request}], seed=1))
        to_map = json.loads(ask(RuleLLM(0), task, caption))
        assert caption in from_map["instruction"]
        assert caption not in to_map["instruction"]
        assert from_map["output_caption"] == to_map["output_caption"]
