"""Edits that change a scene: which scenes they start from, what they end in, what they might have ended in instead."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from toyworld.edits import phrasings
from toyworld.scenes.caption_grammar import GROUND, article, describe, noun, voice
from toyworld.scenes.palette import (
    ALLOWED_COLOURS,
    BACKGROUNDS,
    BIG_RADIUS,
    CARD,
    CELLS,
    COLOURS,
    CONDITIONS,
    KINDS,
    LETTERS,
    POSES,
    RADII,
    SHAPES,
    STYLES,
    TEXTURES,
)
from toyworld.scenes.scene import EMPTY, PIXEL_ART, Scenes, pick, scenes, uniform


@dataclass(frozen=True)
class Change:
    """N edits of one task, before anything is drawn or said."""

    source: Scenes
    target: Scenes
    alternatives: list[Scenes]  # each: all N scenes with another value of what was edited
    slots: np.ndarray  # [N] the object meant; of the source, except for `add`
    wordings: list[tuple[str, ...]]  # [N] templates that fit
    words: list[dict[str, str]] = field(default_factory=list)  # [N] what fills them, besides the object


def suited(numbers: np.ndarray, kind: int | None = None, plain: bool = False) -> tuple[Scenes, np.ndarray]:
    """The scenes with these numbers, with at least one object, and a slot each that holds one (of `kind`, if named).

    Where no object fits, the first one is made to, and what would overlap it leaves. `plain`: a clear photo.
    """
    all_scenes = scenes(numbers)
    if plain:
        zeros = np.zeros(len(numbers), np.int16)
        all_scenes = replace(all_scenes, condition=zeros, style=zeros)
    if kind is not None:
        all_scenes = _no_pixels(all_scenes)
    lacking = np.flatnonzero(~_fits(all_scenes, kind).any(1))
    first = np.zeros(len(lacking), int)
    some = pick(all_scenes.number[lacking], "somekind", np.ones(len(SHAPES))) if kind is None else kind
    variants = len(LETTERS) if kind == CARD else len(POSES)
    variant = pick(all_scenes.number[lacking], "somevari", np.ones(variants)) if kind is not None else 0
    cell = all_scenes.cell[lacking, 0]
    all_scenes = all_scenes.edited(
        lacking, first, kind=some, variant=variant, texture=0, cell=np.where(cell < 0, CELLS.index("centre"), cell)
    )
    needs_room = lacking if kind is not None else lacking[all_scenes.style[lacking] == PIXEL_ART]
    all_scenes = grown(all_scenes, needs_room, np.zeros(len(needs_room), int))
    return all_scenes, pick(all_scenes.number, "theslot", _fits(all_scenes, kind))


def _no_pixels(all_scenes: Scenes) -> Scenes:
    """Pixel art becomes a photo: its blocks would hide letters, limbs and patterns."""
    return replace(all_scenes, style=np.where(all_scenes.style == PIXEL_ART, 0, all_scenes.style).astype(np.int16))


def _fits(all_scenes: Scenes, kind: int | None) -> np.ndarray:
    return all_scenes.present if kind is None else all_scenes.kind == kind


def grown(all_scenes: Scenes, rows: np.ndarray, slots: np.ndarray) -> Scenes:
    """Make the objects at `(rows, slots)` big, and empty the slots that they would then touch."""
    small = all_scenes.radius[rows, slots] < BIG_RADIUS
    rows, slots = rows[small], slots[small]
    inside = {name: np.clip(getattr(all_scenes, name)[rows, slots], RADII[2] + 1, 62 - RADII[2]) for name in ("x", "y")}
    out = all_scenes.edited(rows, slots, radius=RADII[2], **inside)
    kind = out.kind.copy()
    for other in range(kind.shape[1]):
        gap = np.hypot(out.x[rows, other] - out.x[rows, slots], out.y[rows, other] - out.y[rows, slots])
        touches = (other != slots) & (gap < out.radius[rows, other] + RADII[2] - 2)
        kind[rows[touches], other] = EMPTY
    return replace(out, kind=kind)


def unused_shapes(all_scenes: Scenes) -> np.ndarray:
    """bool [N, 8]: shapes that no object of the scene has."""
    return ~(all_scenes.kind[:, :, None] == np.arange(len(SHAPES))).any(1)


def _others(weights: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Weights `[N, K]` with the current value of each row forbidden."""
    allowed = np.broadcast_to(weights, (len(current), weights.shape[-1])).copy()
    allowed[np.arange(len(current)), current] = False
    return allowed


def local(numbers: np.ndarray) -> Change:
    """Half change an object's colour, half its shape."""
    source, slots = suited(numbers)
    rows = np.arange(len(source))
    recolour = (uniform(numbers, "recolor") < 0.5) | (source.kind[rows, slots] >= CARD)
    now_colour, now_kind = source.colour[rows, slots], source.kind[rows, slots]
    colour = pick(numbers, "newcolor", _others(ALLOWED_COLOURS[source.background], now_colour))
    kind = np.where(recolour, now_kind, pick(numbers, "newkind", unused_shapes(source)))
    colour = np.where(recolour, colour, now_colour)

    def other(k: int) -> Scenes:
        other_colour = np.where(recolour, (colour + k) % len(COLOURS), colour)
        other_kind = np.where(recolour, kind, (kind + min(k, len(SHAPES) - 1)) % len(SHAPES))
        return source.edited(rows, slots, colour=other_colour, kind=other_kind)

    target = source.edited(rows, slots, colour=colour, kind=kind)
    alone = source.count == 1
    wordings = [
        (phrasings.LOCAL_COLOUR + (phrasings.SHARED["local", "colour"] if alone[n] else ()))
        if recolour[n]
        else phrasings.LOCAL_SHAPE
        for n in rows
    ]
    words = [{"colour": COLOURS[colour[n]], "a_new": _named(target, n, slots[n])} for n in range(len(rows))]
    return Change(source, target, [other(k) for k in range(1, len(COLOURS))], slots, wordings, words)


def remove(numbers: np.ndarray) -> Change:
    """An object goes; it might have been another one, or nothing at all."""
    source, slots = suited(numbers)
    rows = np.arange(len(source))
    target = source.edited(rows, slots, kind=EMPTY)
    others = [source.edited(rows, (slots + k) % 3, kind=EMPTY) for k in (1, 2)]
    return Change(source, target, others, slots, [phrasings.REMOVE] * len(rows))


def add(numbers: np.ndarray) -> Change:
    """The reverse of removing, as in Emu Edit: the target is the scene that was made first."""
    back = remove(numbers)
    rows = np.arange(len(numbers))
    full, slots = back.source, back.slots
    kind, colour = full.kind[rows, slots], full.colour[rows, slots]
    others = [full.edited(rows, slots, colour=(colour + k) % len(COLOURS)) for k in range(1, len(COLOURS))]
    others += [full.edited(rows, slots, kind=(kind + k) % len(SHAPES), variant=0, texture=0) for k in range(1, len(SHAPES))]
    words = [{"a_new": _named(full, n, slots[n], where=True)} for n in range(len(rows))]
    return Change(back.target, full, others, slots, [phrasings.ADD] * len(rows), words)


def texture(numbers: np.ndarray) -> Change:
    """A shape gets another pattern. Cards and people wear none."""
    source, slots = suited(numbers, kind=None)
    rows = np.arange(len(source))
    person = rows[source.kind[rows, slots] >= CARD]
    unused = unused_shapes(source)[person]
    source = source.edited(person, slots[person], kind=pick(numbers[person], "newkind", unused), variant=0)
    source = grown(source, rows, slots)
    source = _no_pixels(source)
    new = pick(numbers, "newtextu", _others(np.ones(len(TEXTURES), bool), source.texture[rows, slots]))
    target = source.edited(rows, slots, texture=new)
    others = [source.edited(rows, slots, texture=(new + k) % len(TEXTURES)) for k in range(1, len(TEXTURES))]
    words = [{"texture": TEXTURES[new[n]], "kind": KINDS[source.kind[n, slots[n]]]} for n in rows]
    alone = source.count == 1
    wordings = [phrasings.TEXTURE + (phrasings.SHARED["texture", ""] if alone[n] else ()) for n in rows]
    return Change(source, target, others, slots, wordings, words)


def background(numbers: np.ndarray) -> Change:
    """Another ground, on which every object can still be seen."""
    source, slots = suited(numbers)
    visible = np.ones((len(source), len(BACKGROUNDS)), bool)
    for s in range(source.kind.shape[1]):
        visible &= ALLOWED_COLOURS[:, source.colour[:, s]].T | ~source.present[:, s, None]
    new = pick(numbers, "newback", _others(visible, source.background) & visible)
    target = replace(source, background=new)
    others = [replace(source, background=(new + k) % len(BACKGROUNDS)) for k in range(1, len(BACKGROUNDS))]
    names = [BACKGROUNDS[b] for b in new]
    wordings = [phrasings.BACKGROUND + phrasings.SHARED.get(("background", name), ()) for name in names]
    words = [{"background": GROUND[name][0].split(" ", 1)[1].removeprefix("a ").removeprefix("the ")} for name in names]
    return Change(source, target, others, slots, wordings, words)


def global_(numbers: np.ndarray) -> Change:
    """Other weather or light over the whole scene."""
    source, slots = suited(numbers)
    source = replace(source, style=np.zeros(len(source), np.int16))
    new = pick(numbers, "newcond", _others(np.array([0.5, 1, 1, 1, 1, 1]), source.condition))
    others = [replace(source, condition=(new + k) % len(CONDITIONS)) for k in range(1, len(CONDITIONS))]
    names = [CONDITIONS[c] for c in new]
    wordings = [phrasings.GLOBAL[name] + phrasings.SHARED.get(("global", name), ()) for name in names]
    return Change(source, replace(source, condition=new), others, slots, wordings)


def style(numbers: np.ndarray) -> Change:
    """A clear photo, redrawn."""
    source, slots = suited(numbers, plain=True)
    new = pick(numbers, "newstyle", _others(np.ones(len(STYLES)), source.style))
    others = [replace(source, style=(new + k) % len(STYLES)) for k in range(1, len(STYLES))]
    names = [STYLES[i] for i in new]
    wordings = [phrasings.STYLE + phrasings.SHARED.get(("style", name), ()) for name in names]
    words = [{"a_style": phrasings.A_STYLE[name]} for name in names]
    return Change(source, replace(source, style=new), others, slots, wordings, words)


def text(numbers: np.ndarray) -> Change:
    """Another letter on a card."""
    source, slots = suited(numbers, kind=CARD)
    rows = np.arange(len(source))
    new = pick(numbers, "newlettr", _others(np.ones(len(LETTERS)), source.variant[rows, slots]))
    target = source.edited(rows, slots, variant=new)
    others = [source.edited(rows, slots, variant=(new + k) % len(LETTERS)) for k in range(1, len(LETTERS))]
    words = [{"letter": LETTERS[new[n]], "old": LETTERS[source.variant[n, slots[n]]]} for n in rows]
    return Change(source, target, others, slots, [phrasings.TEXT + phrasings.SHARED["text", ""]] * len(rows), words)


def _named(all_scenes: Scenes, n: int, slot: int, where: bool = False) -> str:
    """'a red star', as a new object is asked for; with its size and place if `where`."""
    if where:
        return describe(all_scenes, n, slot, voice(all_scenes.number[n], "added"))
    named = f"{COLOURS[all_scenes.colour[n, slot]]} {noun(all_scenes, n, slot)}"
    return f"{article(named)} {named}"


CHANGES: dict[str, Callable[[np.ndarray], Change]] = {
    "local": local,
    "remove": remove,
    "add": add,
    "texture": texture,
    "background": background,
    "global": global_,
    "style": style,
    "text": text,
}
