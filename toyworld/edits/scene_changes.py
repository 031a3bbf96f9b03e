"""Edits of the scene itself: for each task the source scenes, the target scenes, and plausible wrong targets."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from toyworld.edits import phrasings
from toyworld.edits.wrong_scenes import N_DETAILS, with_other_details
from toyworld.scenes.caption_grammar import BACKGROUND_PHRASES, describe_object, indefinite_article, slot_noun, wording_rng
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
from toyworld.scenes.scene import EMPTY, PIXEL_ART, SLOTS, Scenes, generate_scenes, pick, uniform


@dataclass(frozen=True)
class SceneChange:
    """N edits of one task, before rendering and before the instruction is written."""

    source: Scenes
    target: Scenes
    alternatives: list[Scenes]  # each holds all N scenes, with another value of the edited attribute
    slots: np.ndarray  # [N] slot of the edited object: in the source, except for `add`, where it is in the target
    templates: list[tuple[str, ...]]  # [N] instruction templates that fit the edit
    values: list[dict[str, str]] = field(default_factory=list)  # [N] values of the template fields other than `{the}`


def scenes_with_object(numbers: np.ndarray, kind: int | None = None, clear_photo: bool = False) -> tuple[Scenes, np.ndarray]:
    """Generate the scenes with these numbers such that each has an object to edit. Returns scenes and slots `[N]`.

    `kind` limits the slot to objects of that kind. In a scene without such an object, the object in slot 0 is given
    a fitting kind, and objects that would overlap it are removed. `clear_photo` sets clear weather and the photo style.
    """
    scenes = generate_scenes(numbers)
    if clear_photo:
        zeros = np.zeros(len(numbers), np.int16)
        scenes = replace(scenes, condition=zeros, style=zeros)
    if kind is not None:
        scenes = _pixel_art_to_photo(scenes)
    unfit_rows = np.flatnonzero(~_fitting_slots(scenes, kind).any(1))
    slot_0 = np.zeros(len(unfit_rows), int)
    new_kind = pick(scenes.number[unfit_rows], "somekind", np.ones(len(SHAPES))) if kind is None else kind
    n_variants = len(LETTERS) if kind == CARD else len(POSES)
    variant = pick(scenes.number[unfit_rows], "somevari", np.ones(n_variants)) if kind is not None else 0
    cell = scenes.cell[unfit_rows, 0]
    cell = np.where(cell < 0, CELLS.index("centre"), cell)
    scenes = scenes.replace_fields(unfit_rows, slot_0, kind=new_kind, variant=variant, texture=0, cell=cell)
    rows_to_enlarge = unfit_rows if kind is not None else unfit_rows[scenes.style[unfit_rows] == PIXEL_ART]
    scenes = enlarge_objects(scenes, rows_to_enlarge, np.zeros(len(rows_to_enlarge), int))
    return scenes, pick(scenes.number, "theslot", _fitting_slots(scenes, kind))


def _pixel_art_to_photo(scenes: Scenes) -> Scenes:
    """Replace the style pixel art by photo, because its blocks would hide letters, limbs and textures."""
    return replace(scenes, style=np.where(scenes.style == PIXEL_ART, 0, scenes.style).astype(np.int16))


def _fitting_slots(scenes: Scenes, kind: int | None) -> np.ndarray:
    """bool [N, 3]: slots that hold an object of this kind, or any object if `kind` is None."""
    return scenes.present if kind is None else scenes.kind == kind


def enlarge_objects(scenes: Scenes, rows: np.ndarray, slots: np.ndarray) -> Scenes:
    """Make the objects at `(rows, slots)` big, and empty the other slots that they would then overlap."""
    is_small = scenes.radius[rows, slots] < BIG_RADIUS
    rows, slots = rows[is_small], slots[is_small]
    inside = {axis: np.clip(getattr(scenes, axis)[rows, slots], RADII[2] + 1, 62 - RADII[2]) for axis in ("x", "y")}
    out = scenes.replace_fields(rows, slots, radius=RADII[2], **inside)
    kind = out.kind.copy()
    for other in range(SLOTS):
        distance = np.hypot(out.x[rows, other] - out.x[rows, slots], out.y[rows, other] - out.y[rows, slots])
        overlaps = (other != slots) & (distance < out.radius[rows, other] + RADII[2] - 2)
        kind[rows[overlaps], other] = EMPTY
    return replace(out, kind=kind)


def unused_shapes(scenes: Scenes) -> np.ndarray:
    """bool [N, 8]: shapes that are not in the scene."""
    return ~(scenes.kind[:, :, None] == np.arange(len(SHAPES))).any(1)


def _exclude_current(weights: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Copy weights `[K]` or `[N, K]` to `[N, K]` and set the weight of each row's current value to 0."""
    allowed = np.broadcast_to(weights, (len(current), weights.shape[-1])).copy()
    allowed[np.arange(len(current)), current] = False
    return allowed


# One function per task, named after the task. Each takes scene numbers [N].


def local(numbers: np.ndarray) -> SceneChange:
    """Change the colour of an object in about half of the scenes, and its shape in the others."""
    source, slots = scenes_with_object(numbers)
    rows = np.arange(len(source))
    recolour = (uniform(numbers, "recolor") < 0.5) | (source.kind[rows, slots] >= CARD)
    old_colour, old_kind = source.colour[rows, slots], source.kind[rows, slots]
    colour = pick(numbers, "newcolor", _exclude_current(ALLOWED_COLOURS[source.background], old_colour))
    kind = np.where(recolour, old_kind, pick(numbers, "newkind", unused_shapes(source)))
    colour = np.where(recolour, colour, old_colour)

    def alternative(k: int) -> Scenes:
        other_colour = np.where(recolour, (colour + k) % len(COLOURS), colour)
        other_kind = np.where(recolour, kind, (kind + min(k, len(SHAPES) - 1)) % len(SHAPES))
        return source.replace_fields(rows, slots, colour=other_colour, kind=other_kind)

    target = source.replace_fields(rows, slots, colour=colour, kind=kind)
    is_single = source.count == 1  # "make it red" is unambiguous only with a single object
    templates = [
        (phrasings.LOCAL_COLOUR + (phrasings.SHARED["local", "colour"] if is_single[n] else ()))
        if recolour[n]
        else phrasings.LOCAL_SHAPE
        for n in rows
    ]
    values = [{"colour": COLOURS[colour[n]], "a_new": _describe_new_object(target, n, slots[n])} for n in range(len(rows))]
    return SceneChange(source, target, [alternative(k) for k in range(1, len(COLOURS))], slots, templates, values)


def remove(numbers: np.ndarray) -> SceneChange:
    """Remove an object. Alternatives: another slot is emptied instead."""
    source, slots = scenes_with_object(numbers)
    rows = np.arange(len(source))
    target = source.replace_fields(rows, slots, kind=EMPTY)
    alternatives = [source.replace_fields(rows, (slots + k) % SLOTS, kind=EMPTY) for k in range(1, SLOTS)]
    return SceneChange(source, target, alternatives, slots, [phrasings.REMOVE] * len(rows))


def add(numbers: np.ndarray) -> SceneChange:
    """Add an object: the reverse of `remove`, as in Emu Edit (arXiv 2311.10089). The target is the generated scene.

    Alternatives: all attributes that the instruction names, except the size and the position, by which the images differ more
    than the judge allows. Colours come first.
    """
    removal = remove(numbers)
    rows = np.arange(len(numbers))
    target, slots = removal.source, removal.slots
    kind, colour = target.kind[rows, slots], target.colour[rows, slots]
    alternatives = [target.replace_fields(rows, slots, colour=(colour + k) % len(COLOURS)) for k in range(1, len(COLOURS))]
    alternatives += [
        target.replace_fields(rows, slots, kind=(kind + k) % len(SHAPES), variant=0, texture=0) for k in range(1, len(SHAPES))
    ]
    alternatives += [with_other_details(target, slots, k) for k in range(1, N_DETAILS)]
    values = [{"a_new": _describe_new_object(target, n, slots[n], in_full=True)} for n in range(len(rows))]
    return SceneChange(removal.target, target, alternatives, slots, [phrasings.ADD] * len(rows), values)


def texture(numbers: np.ndarray) -> SceneChange:
    """Change the texture of a shape. Cards and people have no texture, so they are replaced by shapes first."""
    source, slots = scenes_with_object(numbers, kind=None)
    rows = np.arange(len(source))
    not_shape = rows[source.kind[rows, slots] >= CARD]
    new_kind = pick(numbers[not_shape], "newkind", unused_shapes(source)[not_shape])
    source = source.replace_fields(not_shape, slots[not_shape], kind=new_kind, variant=0)
    source = enlarge_objects(source, rows, slots)
    source = _pixel_art_to_photo(source)
    new_texture = pick(numbers, "newtextu", _exclude_current(np.ones(len(TEXTURES), bool), source.texture[rows, slots]))
    target = source.replace_fields(rows, slots, texture=new_texture)
    alternatives = [
        source.replace_fields(rows, slots, texture=(new_texture + k) % len(TEXTURES)) for k in range(1, len(TEXTURES))
    ]
    values = [{"texture": TEXTURES[new_texture[n]], "kind": KINDS[source.kind[n, slots[n]]]} for n in rows]
    is_single = source.count == 1
    templates = [
        phrasings.TEXTURE
        + phrasings.TEXTURE_CASES[TEXTURES[new_texture[n]]]
        + (phrasings.SHARED["texture", ""] if is_single[n] else ())
        for n in rows
    ]
    return SceneChange(source, target, alternatives, slots, templates, values)


def background(numbers: np.ndarray) -> SceneChange:
    """Change the background to one on which every object is clearly visible."""
    source, slots = scenes_with_object(numbers)
    visible = np.ones((len(source), len(BACKGROUNDS)), bool)
    for slot in range(SLOTS):
        visible &= ALLOWED_COLOURS[:, source.colour[:, slot]].T | ~source.present[:, slot, None]
    new_background = pick(numbers, "newback", _exclude_current(visible, source.background) & visible)
    target = replace(source, background=new_background)
    alternatives = [replace(source, background=(new_background + k) % len(BACKGROUNDS)) for k in range(1, len(BACKGROUNDS))]
    names = [BACKGROUNDS[i] for i in new_background]
    templates = [phrasings.BACKGROUND + phrasings.SHARED.get(("background", name), ()) for name in names]
    values = [{"background": _background_noun(name)} for name in names]
    return SceneChange(source, target, alternatives, slots, templates, values)


def _background_noun(name: str) -> str:
    """The first phrase of a background without preposition and article: 'on a brick wall' -> 'brick wall'."""
    return BACKGROUND_PHRASES[name][0].split(" ", 1)[1].removeprefix("a ").removeprefix("the ")


def global_(numbers: np.ndarray) -> SceneChange:
    """Change the weather or the light of the whole scene. The sources are photos."""
    source, slots = scenes_with_object(numbers)
    source = replace(source, style=np.zeros(len(source), np.int16))
    new_condition = pick(numbers, "newcond", _exclude_current(np.array([0.5, 1, 1, 1, 1, 1]), source.condition))
    alternatives = [replace(source, condition=(new_condition + k) % len(CONDITIONS)) for k in range(1, len(CONDITIONS))]
    names = [CONDITIONS[i] for i in new_condition]
    templates = [phrasings.GLOBAL[name] + phrasings.SHARED.get(("global", name), ()) for name in names]
    return SceneChange(source, replace(source, condition=new_condition), alternatives, slots, templates)


def style(numbers: np.ndarray) -> SceneChange:
    """Change the style of a clear photo."""
    source, slots = scenes_with_object(numbers, clear_photo=True)
    new_style = pick(numbers, "newstyle", _exclude_current(np.ones(len(STYLES)), source.style))
    alternatives = [replace(source, style=(new_style + k) % len(STYLES)) for k in range(1, len(STYLES))]
    names = [STYLES[i] for i in new_style]
    templates = [phrasings.STYLE + phrasings.STYLE_CASES[name] + phrasings.SHARED.get(("style", name), ()) for name in names]
    values = [{"a_style": phrasings.A_STYLE[name]} for name in names]
    return SceneChange(source, replace(source, style=new_style), alternatives, slots, templates, values)


def text(numbers: np.ndarray) -> SceneChange:
    """Change the letter on a card."""
    source, slots = scenes_with_object(numbers, kind=CARD)
    rows = np.arange(len(source))
    letter = source.variant[rows, slots]
    new_letter = pick(numbers, "newlettr", _exclude_current(np.ones(len(LETTERS)), letter))
    target = source.replace_fields(rows, slots, variant=new_letter)
    alternatives = [source.replace_fields(rows, slots, variant=(new_letter + k) % len(LETTERS)) for k in range(1, len(LETTERS))]
    templates = [phrasings.TEXT + phrasings.SHARED["text", ""]] * len(rows)
    values = [{"letter": LETTERS[new_letter[n]], "old": LETTERS[letter[n]]} for n in rows]
    return SceneChange(source, target, alternatives, slots, templates, values)


def _describe_new_object(scenes: Scenes, row: int, slot: int, in_full: bool = False) -> str:
    """The object as described in an instruction: 'a red star'. `in_full` adds size, texture and position."""
    if in_full:
        return describe_object(scenes, row, slot, wording_rng(scenes.number[row], "added"))
    words = f"{COLOURS[scenes.colour[row, slot]]} {slot_noun(scenes, row, slot)}"
    return f"{indefinite_article(words)} {words}"


CHANGES: dict[str, Callable[[np.ndarray], SceneChange]] = {
    "local": local,
    "remove": remove,
    "add": add,
    "texture": texture,
    "background": background,
    "global": global_,
    "style": style,
    "text": text,
}
"""Task -> function that builds its scene changes from scene numbers `[N]`."""
