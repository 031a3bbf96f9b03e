"""Edits with reference results for every task: input, instruction, exact result, and plausible wrong results."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from toyworld.edits import exact_judge, exact_targets, phrasings, task_judge, toy_tasks
from toyworld.edits.exact_judge import Judgement, edit_region
from toyworld.edits.exact_targets import FILTERS
from toyworld.edits.scene_changes import CHANGES, add, scenes_with_object
from toyworld.edits.wrong_scenes import render_wrong
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions, referring_expression, slot_noun, wording_rng
from toyworld.scenes.palette import BOX_RGB, COLOURS, PERSON
from toyworld.scenes.scene import SLOTS, Scenes, pick, scene_numbers, uniform


@dataclass(frozen=True)
class Edits:
    """N edits of one task. Images are uint8 `[N, 64, 64, 3]`."""

    task: str
    numbers: np.ndarray  # [N] numbers of the scenes from which the edits were generated
    instructions: list[str]
    input_captions: list[str]
    output_captions: list[str]
    objects: list[str]  # noun of the edited object, '' if the task edits the whole image
    before: np.ndarray
    exact: np.ndarray
    source: Scenes  # the scenes in `before`; if `before` is a map, the scenes from which the map was rendered
    render_alternatives: Callable[[], Iterable[np.ndarray]]  # K times uint8 [N, 64, 64, 3]
    render_spoiled: Callable[[], Iterable[np.ndarray]] = tuple  # the same; none: the alternatives include them

    @cached_property
    def alternatives(self) -> np.ndarray:
        """uint8 [N, K, 64, 64, 3]: wrong results, with other values of the edited attribute or of another task.

        Alternatives that barely differ from the exact result in the edit region are replaced by the input.
        """
        alternatives = np.stack(list(self.render_alternatives()), 1)
        region = edit_region(self.before, self.exact)
        for n, exact in enumerate(self.exact):
            n_changed = (exact_judge.l1(alternatives[n], exact) > exact_judge.CHANGED_L1)[:, region[n]].sum(1)
            alternatives[n, n_changed < exact_judge.MIN_CHANGED_PX] = self.before[n]
        return alternatives

    @cached_property
    def spoiled(self) -> np.ndarray:
        """uint8 [N, K, 64, 64, 3]: the exact results, each with another change that was not asked for."""
        return np.stack(list(self.render_spoiled()) or [self.exact], 1)

    def judge(self, output: np.ndarray) -> Judgement:
        """Judge an editor's outputs, uint8 `[N, 64, 64, 3]`, against the exact results."""
        return task_judge.judge(self.task, output, self.before, self.exact, self.alternatives, self.spoiled)


def build_edits(task: str, split: str, start: int, n: int) -> Edits:
    """Build the edits `start .. start + n` of a task, trained or held out, in a split ('train' or 'held_out').

    The same arguments give the same edits. Raises UnknownTaskError for a task that the toy world lacks.
    """
    toy_tasks.check_toy_task(task, toy_tasks.TRAINED + toy_tasks.HELD_OUT)
    numbers = scene_numbers(split, start, n)
    if task in toy_tasks.HELD_OUT:
        return _held_out_edits(task, numbers)
    if task in CHANGES:
        return _scene_edits(task, numbers)
    if task == "color":
        return _color_edits(numbers)
    if task in ("detect", "segment"):
        return _annotation_edits(task, numbers)
    return _map_edits(task, numbers)


def object_reference(scenes: Scenes, row: int, slot: int, *purpose: object) -> str:
    """A referring expression for the object in this slot: 'the star' or 'the red star'. `purpose` seeds the choice."""
    colour = COLOURS[scenes.colour[row, slot]]
    return referring_expression(slot_noun(scenes, row, slot), colour, wording_rng(scenes.number[row], "the", *purpose))


def _instructions(
    task: str, scenes: Scenes, slots: np.ndarray, templates: list[tuple[str, ...]], values: list[dict[str, str]]
) -> list[str]:
    """Choose one template per scene and fill it in. `{the}` refers to the object in the slot; `values` may be empty."""
    texts = []
    for row, options in enumerate(templates):
        template = wording_rng(scenes.number[row], task, "wording").choice(options)
        reference = object_reference(scenes, row, slots[row], task) if "{the}" in template else ""
        texts.append(template.format(the=reference, **(values[row] if values else {})))
    return texts


def _scene_edits(task: str, numbers: np.ndarray) -> Edits:
    """Tasks that change the scene itself: the result is a rendering of the changed scene."""
    change = CHANGES[task](numbers)
    scenes_with_edited_object = change.target if task == "add" else change.source
    edits_object = task not in ("background", "global", "style")
    exact = render.images(change.target)

    return Edits(
        task=task,
        numbers=numbers,
        instructions=_instructions(task, scenes_with_edited_object, change.slots, change.templates, change.values),
        input_captions=all_captions(change.source),
        output_captions=all_captions(change.target),
        objects=[slot_noun(scenes_with_edited_object, n, s) if edits_object else "" for n, s in enumerate(change.slots)],
        before=render.images(change.source),
        exact=exact,
        source=change.source,
        render_alternatives=lambda: [render.images(other) for other in change.alternatives],
        render_spoiled=lambda: render_wrong(change.target, exact, free_slots=change.slots if task == "add" else None),
    )


def _annotation_edits(task: str, numbers: np.ndarray) -> Edits:
    """detect and segment. Alternatives: the annotation of each other slot, and the other kind of annotation.

    Instructions name no colour, but an editor has seen marks of one colour only: a mask of another one is spoiled.
    """
    source, slots = scenes_with_object(numbers)
    truth = render.truth(source)
    captions = all_captions(source)
    if task == "detect":
        annotate, annotate_otherwise, templates = exact_targets.detect, exact_targets.segment, phrasings.DETECT
    else:
        annotate, annotate_otherwise, templates = exact_targets.segment, exact_targets.detect, phrasings.SEGMENT

    def render_alternatives() -> list[np.ndarray]:
        return [*(annotate(truth, (slots + k) % SLOTS) for k in range(1, SLOTS)), annotate_otherwise(truth, slots)]

    exact = annotate(truth, slots)
    marked = (exact != truth.images).any(-1, keepdims=True)
    nouns = [slot_noun(source, n, slot) for n, slot in enumerate(slots)]
    return Edits(
        task=task,
        numbers=numbers,
        instructions=_instructions(task, source, slots, [templates + phrasings.SHARED[task, ""]] * len(numbers), []),
        input_captions=captions,
        output_captions=[
            phrasings.ANNOTATED_CAPTION[task].format(caption=caption, noun=noun)
            for caption, noun in zip(captions, nouns, strict=True)
        ],
        objects=nouns,
        before=truth.images,
        exact=exact,
        source=source,
        render_alternatives=render_alternatives,
        render_spoiled=lambda: [np.where(marked, rgb, truth.images) for rgb in task_judge.OTHER_RGB if task == "segment"],
    )


def _map_edits(task: str, numbers: np.ndarray) -> Edits:
    """depth, normal, sketch, segmap and pose. About half of the edits go from the map to the image."""
    source, slots = scenes_with_object(numbers, kind=PERSON if task == "pose" else None)
    truth = render.truth(source)
    captions = all_captions(source)
    map_captions = [phrasings.MAP_CAPTION[task].format(caption=caption) for caption in captions]
    exact_map = _render_map(task, source, truth)
    from_map = uniform(numbers, "reverse") < 0.5
    to_map_templates = phrasings.MAPS[task] + phrasings.SHARED.get((task, ""), ())
    templates = [phrasings.FROM_MAP[task] if reverse else to_map_templates for reverse in from_map]
    reverse_images = from_map[:, None, None, None]  # broadcasts over [N, 64, 64, 3]

    exact = np.where(reverse_images, truth.images, exact_map)

    def draw(rows: np.ndarray, scenes: Scenes) -> np.ndarray:
        wrong, reverse = exact[rows], from_map[rows]
        wrong[reverse] = render.images(scenes[reverse])
        wrong[~reverse] = _map_of(task, scenes[~reverse])
        return wrong

    def render_alternatives() -> Iterator[np.ndarray]:
        yield from render_wrong(source, exact, draw)
        for kind in phrasings.MAPS:
            if kind != task:
                yield np.where(reverse_images, exact_map, _render_map(kind, source, truth))

    return Edits(
        task=task,
        numbers=numbers,
        instructions=_instructions(task, source, slots, templates, [{"caption": caption} for caption in captions]),
        input_captions=[map_captions[n] if reverse else captions[n] for n, reverse in enumerate(from_map)],
        output_captions=[captions[n] if reverse else map_captions[n] for n, reverse in enumerate(from_map)],
        objects=[""] * len(numbers),
        before=np.where(reverse_images, exact_map, truth.images),
        exact=exact,
        source=source,
        render_alternatives=render_alternatives,
    )


def _render_map(kind: str, source: Scenes, truth: render.GroundTruth) -> np.ndarray:
    """The map of one kind, uint8 [N, 64, 64, 3]. `truth` is the rendering of `source`."""
    if kind == "segmap":
        return exact_targets.segmap(source, truth)
    if kind == "pose":
        return exact_targets.pose(source)
    return {"depth": exact_targets.depth, "normal": exact_targets.normal, "sketch": exact_targets.sketch}[kind](truth)


def _map_of(kind: str, scenes: Scenes) -> np.ndarray:
    """The map of one kind of these scenes, uint8 [N, 64, 64, 3]. Skeletons need no rendering."""
    return exact_targets.pose(scenes) if kind == "pose" else _render_map(kind, scenes, render.truth(scenes))


def _color_edits(numbers: np.ndarray) -> Edits:
    """Colour filters. Alternatives: the results of all other filters."""
    source, slots = scenes_with_object(numbers)
    filter_ids = pick(numbers, "filter", np.ones(len(FILTERS)))
    before = render.images(source)
    has_effect = edit_region(before, exact_targets.apply_colour_filter(before, filter_ids)).any((1, 2))
    # A filter may have no visible effect, such as "saturate" on a grey image. Such images are darkened instead.
    filter_ids = np.where(has_effect, filter_ids, FILTERS.index("darken"))
    exact = exact_targets.apply_colour_filter(before, filter_ids)

    def draw(rows: np.ndarray, scenes: Scenes) -> np.ndarray:
        return exact_targets.apply_colour_filter(render.images(scenes), filter_ids[rows])

    names = [FILTERS[i] for i in filter_ids]
    captions = all_captions(source)
    templates = [phrasings.COLOR[name] + phrasings.SHARED.get(("color", name), ()) for name in names]
    return Edits(
        task="color",
        numbers=numbers,
        instructions=_instructions("color", source, slots, templates, []),
        input_captions=captions,
        output_captions=captions,
        objects=[""] * len(numbers),
        before=before,
        exact=exact,
        source=source,
        render_alternatives=lambda: [
            exact_targets.apply_colour_filter(before, (filter_ids + k) % len(FILTERS)) for k in range(1, len(FILTERS))
        ],
        render_spoiled=lambda: render_wrong(source, exact, draw),
    )


def _held_out_edits(task: str, numbers: np.ndarray) -> Edits:
    """Held-out tasks, which are learned by task inversion from a few examples."""
    values: list[dict[str, str]] = []
    if task == "add_detect":
        change = add(numbers)
        source, slots, values = change.source, change.slots, change.values
        truth = render.truth(change.target)
        before, exact = render.images(source), exact_targets.detect(truth, slots)
    else:
        source, slots = scenes_with_object(numbers, clear_photo=task == "superres")  # pixel art has low resolution already
        truth = render.truth(source)
        before, exact = truth.images, _held_out_result(task, source, truth)
    if task == "superres":
        before = exact_targets.downsample_4x(before)
    elif task == "inpaint":
        before = exact_targets.cut_hole(source, slots, before)

    def render_alternatives() -> Iterator[np.ndarray]:
        if task == "add_detect":
            line = (exact == render.quantise(BOX_RGB)).all(-1, keepdims=True)
            yield from (np.where(line, exact, render.images(scenes)) for scenes in change.alternatives)
            return
        yield from (exact_targets.depth(truth), exact_targets.sketch(truth), exact_targets.segmap(source, truth))
        yield from render_wrong(source, exact, lambda _, scenes: _held_out_result(task, scenes))

    captions = all_captions(source)
    return Edits(
        task=task,
        numbers=numbers,
        instructions=_instructions(task, source, slots, [phrasings.HELD_OUT[task]] * len(numbers), values),
        input_captions=captions,
        output_captions=captions,
        objects=[""] * len(numbers),
        before=before,
        exact=exact,
        source=source,
        render_alternatives=render_alternatives,
    )


def _held_out_result(task: str, scenes: Scenes, truth: render.GroundTruth | None = None) -> np.ndarray:
    """The result of a held-out task for these scenes: contours, only the objects, or the images.

    `truth`: the rendering of `scenes`, if available.
    """
    if task in ("contour", "cutout"):
        draw = exact_targets.contour if task == "contour" else exact_targets.cutout
        return draw(truth or render.truth(scenes))
    return truth.images if truth else render.images(scenes)
