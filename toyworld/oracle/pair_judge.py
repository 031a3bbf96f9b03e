"""Judge generated pairs: read both images back and compare them with the captions and with each other.

The filters of the stage `dataset` are measured against these verdicts. They use no learned model. A pair is
correct if the source allows the instruction, the target shows its result, and nothing else changed. An object of the
source is checked only for the attributes that the instruction names: the colour of the star does not matter to
"remove the star". The method and its bounds are ours, not from a paper.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from emuedit.data.png import decode_png
from emuedit.data.records import Pair
from toyworld.edits import phrasings
from toyworld.edits.caption_parser import CaptionObject, ParsedCaption, parse
from toyworld.edits.exact_judge import MAX_OUTSIDE_L1, MAX_WINDOW_L1, WINDOW_PX, l1, masked_mean
from toyworld.oracle.map_judge import SCENE_ATTRIBUTES, is_from_map, judge_mark, judge_sketch
from toyworld.oracle.object_matching import (
    ReadImage,
    build_read_images,
    find_object,
    matches,
    named_attributes,
    noun_attribute,
    phrase_row,
    reread_expecting,
    same_object,
    same_place,
)
from toyworld.reading import Reading, SeenObject, read_scenes
from toyworld.scenes.caption_grammar import BACKGROUND_PHRASES, STYLE_PHRASES, WEATHER_PHRASES
from toyworld.scenes.palette import CARD

MAX_UNCHANGED_L1 = 0.05
"""An object with at most this mean L1 in [0, 1] is unchanged, regardless of the reading. The VAE contributes 0.01 to 0.05."""
MIN_SHARE_OUTSIDE_MASK = 0.6
"""Smallest share of an object outside the mask whose pixels there show that it is unchanged."""
MAX_REMNANT = 0.28
"""Largest difference in [0, 1], after blurring, between target and rendered reading where an object was removed."""
MASK_THRESHOLD = 0.05
"""Mask values in [0, 1] up to this are outside the mask."""
_BLUR_PX = 3.0

_SCENE_ATTRIBUTE_OF_TASK = {"background": "background", "global": "condition", "style": "style"}


@dataclass(frozen=True)
class PairVerdict:
    """The verdict on one pair."""

    faults: tuple[str, ...]
    """source_*: the instruction is impossible; target_*: it was not followed; rest_*: something else changed."""

    @property
    def right(self) -> bool:
        """Whether the pair has no fault."""
        return not self.faults


@dataclass(frozen=True)
class _ReadPair:
    """The readings of a pair's images, their captions, and the pixels that the edit may change."""

    source: ReadImage
    target: ReadImage
    source_caption: ParsedCaption
    target_caption: ParsedCaption
    inside: np.ndarray  # bool [64, 64]

    def reverse(self) -> "_ReadPair":
        """The pair of the inverse edit: source and target are exchanged."""
        return _ReadPair(self.target, self.source, self.target_caption, self.source_caption, self.inside)


def images_to_read(pairs: Iterable[Pair]) -> tuple[bytes, ...]:
    """The distinct PNGs that must be read to judge these pairs: all but maps and annotated images."""
    pngs: dict[bytes, None] = {}
    for pair in pairs:
        for png, is_annotated in zip((pair.source, pair.target), annotated_sides(pair), strict=True):
            if not is_annotated:
                pngs[png] = None
    return tuple(pngs)


def read_images(pngs: Sequence[bytes]) -> dict[bytes, Reading]:
    """Read the scenes of these PNGs. An image takes about 25 ms."""
    return dict(zip(pngs, read_scenes(np.stack([decode_png(png) for png in pngs])), strict=True)) if pngs else {}


def judge(pairs: Sequence[Pair], readings: Mapping[bytes, Reading] | None = None) -> list[PairVerdict]:
    """Judge N pairs. `readings`: PNG -> reading from earlier calls; missing ones are read.

    Raises ValueError for a task that cannot be judged, and for captions outside the toy grammar.
    """
    pngs = images_to_read(pairs)
    earlier_readings = {} if readings is None else readings
    all_readings = {**earlier_readings, **read_images([png for png in pngs if png not in earlier_readings])}
    pixels = np.stack([decode_png(png) for png in pngs])
    images = dict(zip(pngs, build_read_images(pixels, [all_readings[png] for png in pngs]), strict=True))
    return [PairVerdict(_find_faults(pair, images)) for pair in pairs]


def annotated_sides(pair: Pair) -> tuple[bool, bool]:
    """Whether the source and the target are maps or annotated images, from which no scene can be read."""
    if pair.task in ("detect", "segment"):
        return False, True
    if pair.task in phrasings.MAPS:
        return is_from_map(pair), not is_from_map(pair)
    return False, False


def _find_faults(pair: Pair, images: Mapping[bytes, ReadImage]) -> tuple[str, ...]:
    if pair.task in ("detect", "segment"):
        return tuple(judge_mark(pair, images[pair.source]))
    if pair.task == "sketch":
        lines, png = (pair.source, pair.target) if is_from_map(pair) else (pair.target, pair.source)
        return tuple(judge_sketch(pair, decode_png(lines), images[png]))
    if pair.task not in _SCENE_TASKS:
        raise ValueError(f"want a task of {[*_SCENE_TASKS, 'detect', 'segment', 'sketch']}, got {pair.task!r}")
    source_caption, target_caption = parse(pair.source_caption), parse(pair.target_caption)
    if source_caption is None or target_caption is None:
        raise ValueError(f"want captions of the toy world, got {pair.source_caption!r} and {pair.target_caption!r}")
    source, target = images[pair.source], images[pair.target]
    everywhere = np.ones(source.pixels.shape[:2], bool)
    inside = everywhere if pair.mask is None else decode_png(pair.mask) > MASK_THRESHOLD * 255
    read_pair = _ReadPair(source, target, source_caption, target_caption, inside)
    faults = _SCENE_TASKS[pair.task](pair, read_pair)
    if pair.mask is not None:
        faults += _faults_outside_mask(read_pair)
    return tuple(dict.fromkeys(faults))


def _faults_outside_mask(read_pair: _ReadPair) -> list[str]:
    """Changes outside the mask, by the bounds of `exact_judge`. The outside has at least a quarter of an image."""
    outside = ~read_pair.inside
    error = l1(read_pair.source.pixels, read_pair.target.pixels)
    worst_window = float(uniform_filter(error * outside, WINDOW_PX, mode="constant").max())
    mean = float(masked_mean(error[None], outside[None], outside.size // 4)[0])
    return ["rest_outside"] if mean > MAX_OUTSIDE_L1 or worst_window > MAX_WINDOW_L1 else []


def _judge_altered_object(pair: Pair, read_pair: _ReadPair) -> list[str]:
    """local, texture, text: an object of the source became another object of the target, at the same place."""
    (old,) = _objects_only_in(read_pair.source_caption, read_pair.target_caption)
    (new,) = _objects_only_in(read_pair.target_caption, read_pair.source_caption)
    old_attributes = named_attributes(pair, old)
    read_pair = replace(read_pair, source=reread_expecting(read_pair.source, old, old_attributes, competitor=new))
    old_seen = find_object(read_pair.source.reading, old, old_attributes)
    if old_seen is None:
        return ["source_object"]
    new_attributes = {noun_attribute(pair.task), "colour"} | ({"texture"} if pair.task == "texture" else set())
    faults = ["source_same"] if matches(old_seen, new, new_attributes) else []
    read_pair = replace(read_pair, target=reread_expecting(read_pair.target, new, new_attributes, competitor=old))
    new_seen = find_object(read_pair.target.reading, new, new_attributes, near=old_seen)
    if new_seen is None:
        return [*faults, "target_object"]
    is_recoloured_shape = pair.task == "local" and old.noun == new.noun and new_seen.kind < CARD
    if is_recoloured_shape and new_seen.texture != old_seen.texture:
        faults.append("target_texture")
    return [*faults, *_faults_in_rest(read_pair, old_seen, new_seen)]


def _judge_removed_object(pair: Pair, read_pair: _ReadPair) -> list[str]:
    (old,) = _objects_only_in(read_pair.source_caption, read_pair.target_caption)
    attributes = named_attributes(pair, old)
    read_pair = replace(read_pair, source=reread_expecting(read_pair.source, old, attributes, competitor=None))
    old_seen = find_object(read_pair.source.reading, old, attributes)
    return ["source_object"] if old_seen is None else _faults_of_removal(read_pair, old_seen, side="target")


def _judge_added_object(pair: Pair, read_pair: _ReadPair) -> list[str]:
    del pair  # The instruction always names all these attributes.
    (new,) = _objects_only_in(read_pair.target_caption, read_pair.source_caption)
    attributes = {"kind", "colour", "size", "position"}
    read_pair = replace(read_pair, target=reread_expecting(read_pair.target, new, attributes, competitor=None))
    new_seen = find_object(read_pair.target.reading, new, attributes)
    return ["target_object"] if new_seen is None else _faults_of_removal(read_pair.reverse(), new_seen, side="source")


def _faults_of_removal(read_pair: _ReadPair, removed: SeenObject, side: str) -> list[str]:
    """Faults of the removal of an object of the source. Nothing of it may be visible in the target.

    `side` names the image without the object, "target" or "source", in the faults. For `add` the pair is reversed.
    """
    source, target = read_pair.source, read_pair.target
    neighbours = [seen for seen in source.reading.objects if seen is not removed]
    is_left = any(
        same_place(seen, removed) and not any(same_object(seen, neighbour) for neighbour in neighbours)
        for seen in target.reading.objects
    )
    blurred_target, blurred_rendering = (
        gaussian_filter(image.astype(np.float32) / 255, (_BLUR_PX, _BLUR_PX, 0)) for image in (target.pixels, target.rendered)
    )
    difference = np.abs(blurred_target - blurred_rendering).mean(-1)  # [64, 64]
    remnant = float((difference * source.mask(removed)).max())
    faults = [f"{side}_left"] if is_left else []
    if remnant > MAX_REMNANT:
        faults.append(f"{side}_ghost")
    return [*faults, *_faults_in_rest(read_pair, removed, None)]


def _judge_scene_attribute(pair: Pair, read_pair: _ReadPair) -> list[str]:
    """background, global, style: one attribute of the scene changes.

    The other attributes must be those of the source or those of the target caption.
    """
    caption = read_pair.target_caption
    described = {
        "background": phrase_row(BACKGROUND_PHRASES, caption.background),
        "condition": phrase_row(WEATHER_PHRASES, caption.weather),
        "style": phrase_row(STYLE_PHRASES, caption.style),
    }
    edited = _SCENE_ATTRIBUTE_OF_TASK[pair.task]
    source, target = read_pair.source.reading, read_pair.target.reading
    faults = [f"source_{edited}"] if getattr(source, edited) == described[edited] else []
    if getattr(target, edited) != described[edited]:
        faults.append(f"target_{edited}")
    for name in SCENE_ATTRIBUTES:
        if name != edited and getattr(target, name) not in (getattr(source, name), described[name]):
            faults.append(f"rest_{name}")
    return [*faults, *_faults_in_rest(read_pair, None, None, compare_attributes=pair.task == "background")]


_SCENE_TASKS: dict[str, Callable[[Pair, _ReadPair], list[str]]] = {
    "local": _judge_altered_object,
    "texture": _judge_altered_object,
    "text": _judge_altered_object,
    "remove": _judge_removed_object,
    "add": _judge_added_object,
    "background": _judge_scene_attribute,
    "global": _judge_scene_attribute,
    "style": _judge_scene_attribute,
}
"""Task -> function that finds the faults of a pair of two readable images."""


def _faults_in_rest(
    read_pair: _ReadPair, old: SeenObject | None, new: SeenObject | None, compare_attributes: bool = True
) -> list[str]:
    """Objects that disappeared or appeared, other than the edited object: `old` in the source, `new` in the target."""
    reverse = read_pair.reverse()
    source_objects, target_objects = read_pair.source.reading.objects, read_pair.target.reading.objects
    has_lost = any(seen is not old and not _is_kept(seen, read_pair, new, compare_attributes) for seen in source_objects)
    has_gained = any(seen is not new and not _is_kept(seen, reverse, old, compare_attributes) for seen in target_objects)
    return ["rest_lost"] * has_lost + ["rest_came"] * has_gained


def _is_kept(seen: SeenObject, read_pair: _ReadPair, excluded: SeenObject | None, compare_attributes: bool) -> bool:
    """Whether an object of the source is in the target too: by its pixels, or by an object of the target's reading.

    `excluded`: the object of the target that must not be its counterpart.
    """
    mask = read_pair.source.mask(seen)
    error = l1(read_pair.source.pixels, read_pair.target.pixels)
    for area, min_share in ((mask, 1.0), (mask & ~read_pair.inside, MIN_SHARE_OUTSIDE_MASK)):
        if area.sum() >= max(min_share * mask.sum(), 1) and error[area].mean() <= MAX_UNCHANGED_L1:
            return True
    return any(
        other is not excluded and same_object(seen, other, compare_attributes) for other in read_pair.target.reading.objects
    )


def _objects_only_in(caption: ParsedCaption, other_caption: ParsedCaption) -> tuple[CaptionObject, ...]:
    return tuple(described for described in caption.objects if described not in other_caption.objects)
