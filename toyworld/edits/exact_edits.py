"""For every task: before, instruction, exact result, and the results it must not be mistaken for."""

from dataclasses import dataclass, replace

import numpy as np

from emuedit.tasks import HELD_OUT, TASKS, task
from toyworld.edits import exact_judge, exact_targets, phrasings
from toyworld.edits.exact_judge import Judgement, must_change
from toyworld.edits.scene_changes import CHANGES, Change, add, suited
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions, noun, pointed_at, voice
from toyworld.scenes.palette import BACKGROUNDS, COLOURS, CONDITIONS, PERSON
from toyworld.scenes.scene import EMPTY, Scenes, numbers, pick, uniform

GREY = 128
NIGHT = CONDITIONS.index("night")


@dataclass(frozen=True)
class Edits:
    """N edits of one task. Pictures are uint8 `[N, 64, 64, 3]`."""

    task: str
    numbers: np.ndarray  # [N] the scenes they were made from
    instructions: list[str]
    input_captions: list[str]
    output_captions: list[str]
    objects: list[str]  # the object that is edited, '' where it is the whole picture
    before: np.ndarray
    exact: np.ndarray
    alternatives: np.ndarray  # uint8 [N, K, 64, 64, 3]: other values of what was edited, or another task's answer
    source: Scenes  # what `before` shows, or, from a map to a picture, what the map was drawn from

    def judge(self, output: np.ndarray) -> Judgement:
        """The oracle's word on outputs uint8 `[N, 64, 64, 3]` of an editor."""
        return exact_judge.judge(output, self.before, self.exact, self.alternatives)


def edits(name: str, split: str, start: int, n: int) -> Edits:
    """The edits `start .. start + n` of a task, trained or held out, in a split ('train' or 'held_out')."""
    known = task(name)
    which = numbers(split, start, n)
    if known in HELD_OUT:
        return _held_out(name, which)
    return _scene_edits(name, which) if name in CHANGES else _vision_edits(name, which)


def names() -> tuple[str, ...]:
    """The sixteen tasks in their order."""
    return tuple(t.name for t in TASKS)


def thing(all_scenes: Scenes, n: int, slot: int, *purpose: object) -> str:
    """How an instruction points at the object in this slot."""
    colour = COLOURS[all_scenes.colour[n, slot]]
    return pointed_at(noun(all_scenes, n, slot), colour, voice(all_scenes.number[n], "the", *purpose))


def _say(name: str, source: Scenes, slots: np.ndarray, wordings: list[tuple[str, ...]], words: list[dict[str, str]]) -> list[str]:
    spoken = []
    for n, options in enumerate(wordings):
        template = voice(source.number[n], name, "wording").choice(options)
        fills = words[n] if words else {}
        the = thing(source, n, slots[n], name) if "{the}" in template else ""
        spoken.append(template.format(the=the, **fills))
    return spoken


def _scene_edits(name: str, which: np.ndarray) -> Edits:
    change: Change = CHANGES[name](which)
    described = change.target if name == "add" else change.source
    whole = name in ("background", "global", "style")
    return Edits(
        task=name,
        numbers=which,
        instructions=_say(name, described, change.slots, change.wordings, change.words),
        input_captions=all_captions(change.source),
        output_captions=all_captions(change.target),
        objects=["" if whole else noun(described, n, s) for n, s in enumerate(change.slots)],
        before=render.images(change.source),
        exact=render.images(change.target),
        alternatives=np.stack([render.images(other) for other in change.alternatives], 1),
        source=change.source,
    )


def _vision_edits(name: str, which: np.ndarray) -> Edits:
    if name == "color":
        return _color_edits(which)
    source, slots = suited(which, kind=PERSON if name == "pose" else None)
    known = render.truth(source)
    captions = all_captions(source)
    if name in ("detect", "segment"):
        draw = {"detect": exact_targets.detect, "segment": exact_targets.segment}
        exact = draw[name](known, slots)
        table = (phrasings.DETECT if name == "detect" else phrasings.SEGMENT) + phrasings.SHARED[name, ""]
        misread = [draw[name](known, (slots + k) % 3) for k in (1, 2)]
        misread.append(draw["segment" if name == "detect" else "detect"](known, slots))
        return Edits(
            task=name,
            numbers=which,
            instructions=_say(name, source, slots, [table] * len(which), []),
            input_captions=captions,
            output_captions=[
                phrasings.MARKED[name].format(caption=c, noun=noun(source, n, slots[n])) for n, c in enumerate(captions)
            ],
            objects=[noun(source, n, slot) for n, slot in enumerate(slots)],
            before=known.images,
            exact=exact,
            alternatives=np.stack(misread, 1),
            source=source,
        )
    maps = {kind: _map(kind, source, known) for kind in phrasings.MAPS}
    reverse = uniform(which, "reverse") < 0.5
    forward_words = phrasings.MAPS[name] + phrasings.SHARED.get((name, ""), ())
    wordings = [phrasings.FROM_MAP[name] if back else forward_words for back in reverse]
    about = [phrasings.MAP_OF[name].format(caption=c) for c in captions]
    flipped = reverse[:, None, None, None]
    wrong_maps = [maps[kind] for kind in phrasings.MAPS if kind != name]
    others = [np.where(flipped, a, b) for a, b in zip(_wrong_pictures(source, slots), wrong_maps, strict=True)]
    return Edits(
        task=name,
        numbers=which,
        instructions=_say(name, source, slots, wordings, [{"caption": c} for c in captions]),
        input_captions=[a if back else c for a, c, back in zip(about, captions, reverse, strict=True)],
        output_captions=[c if back else a for a, c, back in zip(about, captions, reverse, strict=True)],
        objects=[""] * len(which),
        before=np.where(flipped, maps[name], known.images),
        exact=np.where(flipped, known.images, maps[name]),
        alternatives=np.stack(others, 1),
        source=source,
    )


def _wrong_pictures(source: Scenes, slots: np.ndarray) -> list[np.ndarray]:
    """Four pictures that a map does not ask for: an object of another colour, gone, another ground, another light."""
    rows = np.arange(len(source))
    recoloured = source.edited(rows, slots, colour=(source.colour[rows, slots] + 3) % len(COLOURS))
    gone = source.edited(rows, slots, kind=EMPTY)
    elsewhere = replace(source, background=(source.background + 1) % len(BACKGROUNDS))
    at_night = np.where(source.condition == NIGHT, 0, NIGHT).astype(np.int16)
    return [render.images(some) for some in (recoloured, gone, elsewhere, replace(source, condition=at_night))]


def _map(kind: str, source: Scenes, known: render.Truth) -> np.ndarray:
    if kind == "segmap":
        return exact_targets.segmap(source, known)
    if kind == "pose":
        return exact_targets.pose(source)
    return {"depth": exact_targets.depth, "normal": exact_targets.normal, "sketch": exact_targets.sketch}[kind](known)


def _color_edits(which: np.ndarray) -> Edits:
    source, slots = suited(which)
    chosen = pick(which, "filter", np.ones(len(exact_targets.FILTERS)))
    before = render.images(source)
    seen = must_change(before, exact_targets.colour_filter(before, chosen)).any((1, 2))
    chosen = np.where(seen, chosen, exact_targets.FILTERS.index("darken"))  # there is nothing to saturate in a grey picture
    captions = all_captions(source)
    spoken = [phrasings.COLOR[f] + phrasings.SHARED.get(("color", f), ()) for f in (exact_targets.FILTERS[i] for i in chosen)]
    return Edits(
        task="color",
        numbers=which,
        instructions=_say("color", source, slots, spoken, []),
        input_captions=captions,
        output_captions=captions,
        objects=[""] * len(which),
        before=before,
        exact=exact_targets.colour_filter(before, chosen),
        alternatives=np.stack(
            [
                exact_targets.colour_filter(before, (chosen + k) % len(exact_targets.FILTERS))
                for k in range(1, len(exact_targets.FILTERS))
            ],
            1,
        ),
        source=source,
    )


def _held_out(name: str, which: np.ndarray) -> Edits:
    """Tasks that nobody trains on; task inversion learns them from a few examples."""
    if name == "add_detect":
        change = add(which)
        source, slots = change.source, change.slots
        full = render.truth(change.target)
        before, exact = render.images(source), exact_targets.detect(full, slots)
        others, words = [full.images], change.words
    else:
        source, slots = suited(which, plain=name == "superres")  # pixel art is coarse already
        known = render.truth(source)
        words = []
        others = [exact_targets.depth(known), exact_targets.sketch(known), *_wrong_pictures(source, slots)[:2]]
        if name == "superres":
            before, exact = exact_targets.quarter(known.images), known.images
        elif name == "contour":
            before, exact = known.images, exact_targets.contour(known)
        else:
            before, exact = _with_hole(source, slots, known.images), known.images
    captions = all_captions(source)
    return Edits(
        task=name,
        numbers=which,
        instructions=_say(name, source, slots, [phrasings.HELD_OUT[name]] * len(which), words),
        input_captions=captions,
        output_captions=captions,
        objects=[""] * len(which),
        before=before,
        exact=exact,
        alternatives=np.stack(others, 1),
        source=source,
    )


def _with_hole(source: Scenes, slots: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """A grey square of 20 px over a corner of the object."""
    out = pictures.copy()
    for n, slot in enumerate(slots):
        x, y = int(source.x[n, slot]), int(source.y[n, slot])
        out[n, max(y - 16, 0) : y + 4, max(x - 16, 0) : x + 4] = GREY
    return out
