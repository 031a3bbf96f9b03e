"""Writes an edit of a caption for each task of the toy world, as text: the part of `rule_llm` that knows the tasks.

Objects are named in words that the detector knows: "red star", "blue card with the letter A".
"""

import random
from collections.abc import Callable
from dataclasses import replace

from toyworld.edits import phrasings
from toyworld.edits.caption_parser import CaptionObject, ParsedCaption
from toyworld.edits.exact_targets import FILTERS
from toyworld.edits.phrasings import TemplateTable, template_table
from toyworld.edits.toy_tasks import check_toy_task
from toyworld.scenes.caption_grammar import (
    BACKGROUND_PHRASES,
    POSITION_PHRASES,
    STYLE_PHRASES,
    WEATHER_PHRASES,
    indefinite_article,
    referring_expression,
)
from toyworld.scenes.palette import ALLOWED_COLOURS, BACKGROUNDS, COLOURS, LETTERS, SHAPES, TEXTURES

KEYS = ("instruction", "original_object", "edited_object", "output_caption")

EditAnswer = dict[str, str]
"""One text for each of `KEYS`."""


_BIG_SHARE = 0.6
"""Share of the added objects that are big, where there is room."""
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


class UnsuitableCaptionError(ValueError):
    """The caption has nothing that this task could edit."""


def write_edit(
    task: str,
    caption: ParsedCaption,
    rng: random.Random,
    from_map: bool = False,
    templates: TemplateTable | None = None,
) -> EditAnswer:
    """Write an edit of the caption for a task of the toy world.

    `from_map` matters only to tasks that go both ways between image and map: True goes from the map to the image.
    `templates`: the wordings of the instruction; None: those of the training data.
    Raises UnsuitableCaptionError if the caption has nothing to edit, and UnknownTaskError for a task that the toy world lacks.
    """
    check_toy_task(task)
    templates = templates or template_table("training")
    if task in _SCENE_TASKS:
        return _SCENE_TASKS[task](caption, rng, templates)
    if task == "color":
        name = rng.choice(FILTERS)
        return _answer(rng.choice(_all_templates(templates, task, name)), "", name, caption)
    if task in ("detect", "segment"):
        edited = _choose_object(caption, rng)
        instruction = rng.choice(_all_templates(templates, task)).format(the=_refer_to(edited, rng))
        output_caption = phrasings.ANNOTATED_CAPTION[task].format(caption=caption, noun=edited.noun)
        return _answer(instruction, _detector_name(edited), _detector_name(edited), output_caption)
    if task == "pose" and not any(other.noun.startswith("person") for other in caption.objects):
        raise UnsuitableCaptionError("there is no person in the picture")
    to_map = templates.of(task, "to_map") + templates.shared_of(task)
    instruction = rng.choice(templates.of(task, "from_map") if from_map else to_map).format(caption=caption)
    return _answer(instruction, "", "", phrasings.MAP_CAPTION[task].format(caption=caption))


def _all_templates(templates: TemplateTable, task: str, case: str = "") -> tuple[str, ...]:
    """The templates of a case; shared ones count twice, so that the task predictor sees enough of them."""
    return templates.of(task, case) + 2 * templates.shared_of(task, case)


def _answer(instruction: str, original_object: str, edited_object: str, output_caption: ParsedCaption | str) -> EditAnswer:
    return dict(zip(KEYS, (instruction, original_object, edited_object, str(output_caption)), strict=True))


def _choose_object(caption: ParsedCaption, rng: random.Random, for_texture: bool = False) -> CaptionObject:
    """Choose an object. `for_texture` allows only big shapes and no pixel art, so that the texture is visible."""
    candidates = [candidate for candidate in caption.objects if candidate.size == "big" or not for_texture]
    if not candidates or (for_texture and caption.style in STYLE_PHRASES["pixel art"]):
        raise UnsuitableCaptionError("there is no such object in the picture")
    return rng.choice(candidates)


def _refer_to(edited: CaptionObject, rng: random.Random) -> str:
    """'the star' or 'the red star'."""
    return referring_expression(edited.noun, edited.colour, rng)


def _detector_name(named: CaptionObject) -> str:
    """The object in the detector's words: 'red star'."""
    return f"{named.colour} {named.noun}"


def _textured_name(named: CaptionObject) -> str:
    """The object with its texture, if the caption names one: 'red striped star'."""
    return " ".join(word for word in (named.colour, named.texture, named.noun) if word)


def _is_visible(colour: str, background_phrase: str) -> bool:
    """Whether objects of this colour are clearly visible on the background that the phrase describes."""
    background = next(name for name, phrases in BACKGROUND_PHRASES.items() if background_phrase in phrases)
    return bool(ALLOWED_COLOURS[BACKGROUNDS.index(background), COLOURS.index(colour)])


def _choose_other(options: tuple[str, ...], current: str, rng: random.Random) -> str:
    return rng.choice([option for option in options if option != current])


def _local(caption: ParsedCaption, rng: random.Random, templates: TemplateTable) -> EditAnswer:
    old = _choose_object(caption, rng)
    reference = _refer_to(old, rng)
    if rng.random() < 0.5 or not old.is_shape:
        colours = [colour for colour in COLOURS if colour != old.colour and _is_visible(colour, caption.background)]
        new = replace(old, colour=rng.choice(colours))
        is_single = len(caption.objects) == 1  # "make it red" is clear only if there is a single object
        options = templates.of("local", "colour") + (templates.shared_of("local", "colour") if is_single else ())
        instruction = rng.choice(options).format(the=reference, colour=new.colour)
    else:
        used_nouns = {other.noun for other in caption.objects}
        new = replace(old, noun=rng.choice([shape for shape in SHAPES if shape not in used_nouns]))
        a_new = f"{indefinite_article(new.colour)} {new.colour} {new.noun}"
        instruction = rng.choice(templates.of("local", "shape")).format(the=reference, a_new=a_new)
    return _answer(instruction, _detector_name(old), _detector_name(new), caption.replace_object(old, new))


def _remove(caption: ParsedCaption, rng: random.Random, templates: TemplateTable) -> EditAnswer:
    old = _choose_object(caption, rng)
    instruction = rng.choice(templates.of("remove")).format(the=_refer_to(old, rng))
    return _answer(instruction, _detector_name(old), "", caption.remove_object(old))


def _add(caption: ParsedCaption, rng: random.Random, templates: TemplateTable) -> EditAnswer:
    used_positions = {other.position for other in caption.objects}
    if len(caption.objects) > 2 or used_positions & set(POSITION_PHRASES["centre"]):
        raise UnsuitableCaptionError("the picture is full")
    if caption.style in STYLE_PHRASES["pixel art"]:
        raise UnsuitableCaptionError("nothing small can be seen in pixel art")
    free_cells = [cell for cell, phrases in POSITION_PHRASES.items() if cell != "centre" and not used_positions & set(phrases)]
    cells_for_big = [cell for cell in free_cells if _has_room_for_big(caption, cell)]
    is_big = bool(cells_for_big) and rng.random() < _BIG_SHARE
    position = rng.choice(POSITION_PHRASES[rng.choice(cells_for_big if is_big else free_cells)])
    colours = [colour for colour in COLOURS if _is_visible(colour, caption.background)]
    shapes = [shape for shape in SHAPES if shape not in {other.noun for other in caption.objects}]
    texture = rng.choice(("", "", *TEXTURES[1:])) if is_big else ""
    new = CaptionObject("big" if is_big else "small", rng.choice(colours), texture, rng.choice(shapes), position)
    instruction = rng.choice(templates.of("add")).format(a_new=new)
    return _answer(instruction, "", _detector_name(new), replace(caption, objects=(*caption.objects, new)))


def _has_room_for_big(caption: ParsedCaption, cell: str) -> bool:
    """Whether a big object in this cell does not overlap others: big ones, or of unknown size, only opposite of it."""
    near = {phrase for other, phrases in POSITION_PHRASES.items() if other not in (cell, _OPPOSITE[cell]) for phrase in phrases}
    return all(other.size == "small" or other.position not in near for other in caption.objects)


def _texture(caption: ParsedCaption, rng: random.Random, templates: TemplateTable) -> EditAnswer:
    old = _choose_object(caption, rng, for_texture=True)
    texture = _choose_other(TEXTURES, old.texture or "plain", rng)
    new = replace(old, texture="" if texture == "plain" else texture)
    options = templates.of("texture") + templates.of("texture", texture)
    options += templates.shared_of("texture") if len(caption.objects) == 1 else ()
    reference = _refer_to(old, rng)
    instruction = rng.choice(options).format(the=reference, texture=texture, kind=old.noun)
    return _answer(instruction, _textured_name(old), _textured_name(new), caption.replace_object(old, new))


def _background(caption: ParsedCaption, rng: random.Random, templates: TemplateTable) -> EditAnswer:
    other_names = [name for name, phrases in BACKGROUND_PHRASES.items() if caption.background not in phrases]
    names = [
        name for name in other_names if all(_is_visible(shown.colour, BACKGROUND_PHRASES[name][0]) for shown in caption.objects)
    ]
    if not names:
        raise UnsuitableCaptionError("something would vanish on every other background")
    name = rng.choice(names)
    template = rng.choice(templates.of("background") + templates.shared_of("background", name))
    kept_objects = ", ".join(_detector_name(kept) for kept in caption.objects)
    output_caption = replace(caption, background=rng.choice(BACKGROUND_PHRASES[name]))
    return _answer(template.format(background=name), kept_objects, name, output_caption)


def _global(caption: ParsedCaption, rng: random.Random, templates: TemplateTable) -> EditAnswer:
    if caption.style:
        raise UnsuitableCaptionError("weather is for photos")
    name = rng.choice([name for name, phrases in WEATHER_PHRASES.items() if caption.weather not in phrases])
    instruction = rng.choice(_all_templates(templates, "global", name))
    return _answer(instruction, "", name, replace(caption, weather=rng.choice(WEATHER_PHRASES[name])))


def _style(caption: ParsedCaption, rng: random.Random, templates: TemplateTable) -> EditAnswer:
    if caption.weather:
        raise UnsuitableCaptionError("only a clear picture can be redrawn")
    name = rng.choice([name for name, phrases in STYLE_PHRASES.items() if caption.style not in phrases])
    template = rng.choice(templates.of("style") + _all_templates(templates, "style", name))
    instruction = template.format(a_style=phrasings.A_STYLE[name])
    return _answer(instruction, "", name, replace(caption, style=rng.choice(STYLE_PHRASES[name])))


def _text(caption: ParsedCaption, rng: random.Random, templates: TemplateTable) -> EditAnswer:
    cards = [candidate for candidate in caption.objects if candidate.noun.startswith("card")]
    if not cards:
        raise UnsuitableCaptionError("there is no card in the picture")
    card = rng.choice(cards)
    old_letter = card.noun[-1]
    letter = _choose_other(LETTERS, old_letter, rng)
    template = rng.choice(_all_templates(templates, "text"))
    new = replace(card, noun=card.noun[:-1] + letter)
    instruction = template.format(the=_refer_to(card, rng), letter=letter, old=old_letter)
    return _answer(instruction, _detector_name(card), _detector_name(new), caption.replace_object(card, new))


_SCENE_TASKS: dict[str, Callable[[ParsedCaption, random.Random, TemplateTable], EditAnswer]] = {
    "local": _local,
    "remove": _remove,
    "add": _add,
    "texture": _texture,
    "background": _background,
    "global": _global,
    "style": _style,
    "text": _text,
}
"""Tasks that change what the caption says -> function that writes such an edit."""
