"""Is a painted pair right? Its two pictures are read back and compared with what was said and with each other.

This is the truth by which the gates of `dataset` are measured; no learned model has a part in it. A pair is right when
the source lets the instruction be followed, the target shows what was asked for, and the rest stayed where it was.
Old things count as far as the instruction names them: "remove the star" is followed whatever the star's colour.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from emuedit.data.png import decode_png
from emuedit.data.records import Pair
from toyworld.edits import phrasings
from toyworld.edits.caption_parser import ParsedCaption, Thing, parse
from toyworld.edits.exact_judge import BOUND, LOCAL_BOUND, WINDOW_PX, l1, mean_over
from toyworld.oracle.map_judge import WHOLE, from_map, marked, sketched
from toyworld.oracle.object_matching import Picture, find, index, like, looked_again, named, near, noun, shown, shows
from toyworld.reading import Reading, Seen, read
from toyworld.scenes.caption_grammar import GROUND, STYLE, WEATHER
from toyworld.scenes.palette import CARD

STAYED = 0.05
"""Mean L1 in [0, 1] over an object up to which it is the same, however it is read: the autoencoder alone costs .01 to .05."""
KEPT_SHARE = 0.6
"""Least share of an object that must lie outside of the mask for its pixels to speak for it."""
GHOST = 0.28
"""Most difference in [0, 1], both blurred by `_BLUR_PX`, between where an object was and what is read there: a remnant."""
OUTSIDE = 0.05
"""Values of M in [0, 1] up to this are outside of the mask."""
_BLUR_PX = 3.0
Readings = Mapping[bytes, Reading]


@dataclass(frozen=True)
class Truth:
    """The oracle's word on one pair. A pair without a fault is right."""

    faults: tuple[str, ...]
    """source_<what>: the instruction cannot be followed; target_<what>: it was not; rest_<what>: something else changed."""

    @property
    def right(self) -> bool:
        """No fault was found."""
        return not self.faults


def pictures(pairs: Iterable[Pair]) -> tuple[bytes, ...]:
    """The PNGs that must be read to judge these pairs, each once: maps and marked pictures are not read."""
    needed: dict[bytes, None] = {}
    for one in pairs:
        needed |= dict.fromkeys(png for png, no in zip((one.source, one.target), drawn(one), strict=True) if not no)
    return tuple(needed)


def readings(pngs: Sequence[bytes]) -> dict[bytes, Reading]:
    """Each picture read, 25 ms apiece."""
    return dict(zip(pngs, read(np.stack([decode_png(png) for png in pngs])), strict=True)) if pngs else {}


def judge(pairs: Sequence[Pair], known: Readings | None = None) -> list[Truth]:
    """The truth about N pairs; `known` holds readings made before. Raises ValueError for a task that cannot be judged."""
    needed = pictures(pairs)
    known = {} if known is None else known
    all_read = {**known, **readings([png for png in needed if png not in known])}
    pixels = np.stack([decode_png(png) for png in needed])
    seen = dict(zip(needed, shown(pixels, [all_read[png] for png in needed]), strict=True))
    return [_judged(one, seen) for one in pairs]


def drawn(pair: Pair) -> tuple[bool, bool]:
    """Whether source and target are maps or marked pictures, which cannot be read."""
    if pair.task in ("detect", "segment"):
        return False, True
    if pair.task in phrasings.MAPS:
        return from_map(pair), not from_map(pair)
    return False, False


def _judged(pair: Pair, seen: Mapping[bytes, Picture]) -> Truth:
    if pair.task in ("detect", "segment"):
        return Truth(tuple(marked(pair, seen[pair.source])))
    if pair.task == "sketch":
        lines, picture = (pair.source, pair.target) if from_map(pair) else (pair.target, pair.source)
        return Truth(tuple(sketched(pair, decode_png(lines), seen[picture])))
    if pair.task not in _SCENE:
        raise ValueError(f"want a task of {[*_SCENE, 'detect', 'segment', 'sketch']}, got {pair.task!r}")
    before, after = parse(pair.source_caption), parse(pair.target_caption)
    if before is None or after is None:
        raise ValueError(f"want captions of the toy world, got {pair.source_caption!r} and {pair.target_caption!r}")
    size = seen[pair.source].pixels.shape[:2]
    inside = np.ones(size, bool) if pair.mask is None else decode_png(pair.mask) > OUTSIDE * 255
    both = _Both(seen[pair.source], seen[pair.target], before, after, inside)
    return Truth(tuple(dict.fromkeys([*_SCENE[pair.task](pair, both), *([] if pair.mask is None else _outside(both))])))


@dataclass(frozen=True)
class _Both:
    """The pictures of a pair, what their captions say, and where the edit may be: bool [64, 64]."""

    source: Picture
    target: Picture
    before: ParsedCaption
    after: ParsedCaption
    inside: np.ndarray

    def turned(self) -> "_Both":
        """The edit undone."""
        return _Both(self.target, self.source, self.after, self.before, self.inside)


def _outside(both: _Both) -> list[str]:
    """What moved outside of the mask, by the bounds of the oracle of edits; a thin outside counts as in `oracle`."""
    outside = ~both.inside
    error = l1(both.source.pixels, both.target.pixels)
    worst = float(uniform_filter(error * outside, WINDOW_PX, mode="constant").max())
    mean = float(mean_over(error[None], outside[None], outside.size // 4)[0])
    return ["rest_outside"] if mean > BOUND or worst > LOCAL_BOUND else []


def _altered(pair: Pair, both: _Both) -> list[str]:
    """local, texture, text: one thing became another."""
    (old,), (new,) = _only(both.before, both.after), _only(both.after, both.before)
    both = replace(both, source=looked_again(both.source, old, named(pair, old), new))
    first = find(both.source.seen, old, named(pair, old))
    if first is None:
        return ["source_object"]
    want = {noun(pair.task), "colour"} | ({"texture"} if pair.task == "texture" else set())
    faults = ["source_same"] if shows(first, new, want) else []
    both = replace(both, target=looked_again(both.target, new, want, old))
    second = find(both.target.seen, new, want, beside=first)
    if second is None:
        return [*faults, "target_object"]
    if pair.task == "local" and old.noun == new.noun and second.kind < CARD and second.texture != first.texture:
        faults.append("target_texture")
    return [*faults, *_rest(both, first, second)]


def _removed(pair: Pair, both: _Both) -> list[str]:
    (old,) = _only(both.before, both.after)
    both = replace(both, source=looked_again(both.source, old, named(pair, old), None))
    first = find(both.source.seen, old, named(pair, old))
    return ["source_object"] if first is None else _gone(first, both, "target")


def _added(pair: Pair, both: _Both) -> list[str]:
    del pair  # every word of the new thing is in the instruction
    (new,) = _only(both.after, both.before)
    words = {"kind", "colour", "size", "where"}
    both = replace(both, target=looked_again(both.target, new, words, None))
    second = find(both.target.seen, new, words)
    return ["target_object"] if second is None else _gone(second, both.turned(), "source")


def _gone(first: Seen, both: _Both, where: str) -> list[str]:
    """An object of the source of which nothing is to be seen in the target; faults are those of the picture `where`."""
    neighbours = [one for one in both.source.seen.objects if one is not first]
    left = any(near(one, first) and not any(like(one, other) for other in neighbours) for one in both.target.seen.objects)
    blurred = (
        gaussian_filter(picture.astype(np.float32) / 255, (_BLUR_PX, _BLUR_PX, 0))
        for picture in (both.target.pixels, both.target.drawn)
    )
    ghost = float((np.abs(np.subtract(*blurred)).mean(-1) * both.source.masks[both.source.seen.objects.index(first)]).max())
    return [f"{where}_left"] * left + [f"{where}_ghost"] * (ghost > GHOST) + _rest(both, first, None)


def _redone(pair: Pair, both: _Both) -> list[str]:
    """background, global, style: the whole picture has another look. The rest of the look is as it was, or as was said."""
    said = {
        "background": index(GROUND, both.after.ground),
        "condition": index(WEATHER, both.after.weather),
        "style": index(STYLE, both.after.style),
    }
    name = {"background": "background", "global": "condition", "style": "style"}[pair.task]
    source, target = both.source.seen, both.target.seen
    faults = [f"source_{name}"] if getattr(source, name) == said[name] else []
    if getattr(target, name) != said[name]:
        faults.append(f"target_{name}")
    for other in WHOLE:
        if other != name and getattr(target, other) not in (getattr(source, other), said[other]):
            faults.append(f"rest_{other}")
    return [*faults, *_rest(both, None, None, whole=pair.task == "background")]


_SCENE = {
    "local": _altered,
    "texture": _altered,
    "text": _altered,
    "remove": _removed,
    "add": _added,
    "background": _redone,
    "global": _redone,
    "style": _redone,
}


def _rest(both: _Both, first: Seen | None, second: Seen | None, whole: bool = True) -> list[str]:
    """Objects other than the edited one that are gone, or that came."""
    turned = both.turned()
    lost = any(one is not first and not _matched(one, both, second, whole) for one in both.source.seen.objects)
    came = any(one is not second and not _matched(one, turned, first, whole) for one in both.target.seen.objects)
    return ["rest_lost"] * lost + ["rest_came"] * came


def _matched(one: Seen, both: _Both, but: Seen | None, whole: bool) -> bool:
    """Is an object of the source in the target too: by its pixels, or by what was read (`but` is not for it)?"""
    mask = both.source.masks[both.source.seen.objects.index(one)]
    for where, least in ((mask, 1.0), (mask & ~both.inside, KEPT_SHARE)):
        if where.sum() >= max(least * mask.sum(), 1) and l1(both.source.pixels, both.target.pixels)[where].mean() <= STAYED:
            return True
    return any(other is not but and like(one, other, whole) for other in both.target.seen.objects)


def _only(these: ParsedCaption, others: ParsedCaption) -> tuple[Thing, ...]:
    return tuple(thing for thing in these.things if thing not in others.things)
