"""The toy llm: stands where a chat model stands, and now and then answers as badly as one.

It reads only the last message, which must end in a JSON object with `task` and `caption`, and answers with the JSON
object of an edit: `instruction`, `original_object`, `edited_object`, `output_caption`. Where the object also says
`"direction": "from_map"`, the edit makes the picture of a map; `output_caption` is what one says of the map either way.
Objects are named as the detector knows them: "red star", "blue card with the letter A".
"""

import json
import random
from dataclasses import dataclass, replace
from typing import Any

from emuedit.tasks import task as named_task
from toyworld.edits import phrasings
from toyworld.edits.caption_parser import ParsedCaption, Thing, parse
from toyworld.edits.exact_targets import FILTERS
from toyworld.scenes.caption_grammar import GROUND, STYLE, WEATHER, WHERE, article, pointed_at
from toyworld.scenes.palette import ALLOWED_COLOURS, COLOURS, LETTERS, SHAPES, TEXTURES

BAD_SHARE = 0.06
"""How often the answer is one of the bad ones below."""

KEYS = ("instruction", "original_object", "edited_object", "output_caption")


class UnsuitedError(ValueError):
    """The caption has nothing that this task could edit."""


@dataclass(frozen=True)
class RuleLLM:
    """A llm for captions of the toy world. `bad_share` in [0, 1]."""

    bad_share: float = BAD_SHARE

    def write(
        self,
        messages: list[dict[str, str]],
        *,
        seed: int,
        temperature: float = 0.9,
        top_p: float = 0.9,  # noqa: ARG002 - a chat model has it; there is no tail of words here to cut
        schema: dict[str, Any] | None = None,  # noqa: ARG002 - a chat model can be held to it; bad answers are wanted here
    ) -> str:
        """The answer to the last message. The same messages and seed give the same answer; temperature 0 never errs."""
        asked = messages[-1]["content"]
        say = random.Random(f"{seed}/{asked}")
        wanted = _request(asked)
        if wanted is None:
            return "Please end your message with a JSON object that has the keys task and caption."
        said = parse(wanted["caption"])
        if said is None:
            return f"I do not parse this caption: {wanted['caption']}"
        try:
            answer = edit(wanted["task"], said, say, from_map=wanted.get("direction") == "from_map")
        except UnsuitedError as reason:
            return f"I cannot: {reason}."
        text = json.dumps(answer)
        return spoilt(answer, say) if temperature > 0 and say.random() < self.bad_share else text


def toy_llm() -> RuleLLM:
    """The default llm of the toy world: `llm: toyworld.edits.rule_llm:toy_llm` in `params.yaml`."""
    return RuleLLM()


def _request(asked: str) -> dict[str, str] | None:
    """The JSON object that ends the message, if it has a task and a caption."""
    start = asked.rfind("{")
    try:
        found = json.loads(asked[start:])
    except json.JSONDecodeError:
        return None
    known = isinstance(found, dict) and all(isinstance(found.get(key), str) for key in ("task", "caption"))
    return found if known else None


def spoilt(answer: dict[str, str], say: random.Random) -> str:
    """The answer, gone wrong as chat models go wrong: prose around it, cut off, a key lost, nothing changed, a refusal."""
    text = json.dumps(answer)
    forgotten = say.choice(KEYS)
    lost = {key: value for key, value in answer.items() if key != forgotten}
    return say.choice(
        (
            f"Sure! Here is the edit you asked for:\n{text}\nI hope it helps.",
            text[: len(text) * 2 // 3],
            json.dumps(lost),
            json.dumps({**answer, "instruction": ""}),
            "I am sorry, but I cannot help with that.",
        )
    )


def edit(task: str, said: ParsedCaption, say: random.Random, from_map: bool = False) -> dict[str, str]:
    """An edit of the caption `said`, for one of the sixteen tasks. Raises UnsuitedError, and UnknownTaskError.

    `from_map`: for the tasks that go from pictures to maps and back, the way back.
    """
    named_task(task)
    llm = _SCENE_TASKS.get(task)
    if llm:
        return llm(said, say)
    if task == "color":
        name = say.choice(FILTERS)
        wording = say.choice(phrasings.COLOR[name] + phrasings.SHARED.get(("color", name), ()))
        return _answer(wording, "", name, said)
    if task in ("detect", "segment"):
        thing = _any_thing(said, say)
        table = phrasings.DETECT if task == "detect" else phrasings.SEGMENT
        wording = say.choice(table + phrasings.SHARED[task, ""]).format(the=_the(thing, say))
        return _answer(wording, _named(thing), _named(thing), phrasings.MARKED[task].format(caption=said, noun=thing.noun))
    if task == "pose" and not any(thing.noun.startswith("person") for thing in said.things):
        raise UnsuitedError("there is no person in the picture")
    forward = phrasings.MAPS[task] + phrasings.SHARED.get((task, ""), ())
    wording = say.choice(phrasings.FROM_MAP[task] if from_map else forward).format(caption=said)
    return _answer(wording, "", "", phrasings.MAP_OF[task].format(caption=said))


def _answer(instruction: str, original: str, edited: str, output: ParsedCaption | str) -> dict[str, str]:
    return dict(zip(KEYS, (instruction, original, edited, str(output)), strict=True))


def _any_thing(said: ParsedCaption, say: random.Random, roomy: bool = False) -> Thing:
    """An object of the picture; `roomy`: a big shape, on which a pattern can be seen."""
    fitting = [thing for thing in said.things if thing.size == "big" or not roomy]
    if not fitting or (roomy and said.style in STYLE["pixel art"]):
        raise UnsuitedError("there is no such object in the picture")
    return say.choice(fitting)


def _the(thing: Thing, say: random.Random) -> str:
    return pointed_at(thing.noun, thing.colour, say)


def _named(thing: Thing) -> str:
    """An object in the words of the detector: 'red star'."""
    return f"{thing.colour} {thing.noun}"


def _patterned(thing: Thing) -> str:
    return " ".join(word for word in (thing.colour, thing.texture, thing.noun) if word)


def _visible(colour: str, ground: str) -> bool:
    """Can things of this colour be seen on the ground that these words name?"""
    return bool(ALLOWED_COLOURS[_ground(ground), COLOURS.index(colour)])


def _ground(words: str) -> int:
    return next(i for i, phrases_ in enumerate(GROUND.values()) if words in phrases_)


def _another(options: tuple[str, ...], current: str, say: random.Random) -> str:
    return say.choice([option for option in options if option != current])


def _local(said: ParsedCaption, say: random.Random) -> dict[str, str]:
    thing = _any_thing(said, say)
    the = _the(thing, say)
    if say.random() < 0.5 or not thing.is_shape:
        seen = [colour for colour in COLOURS if colour != thing.colour and _visible(colour, said.ground)]
        new = replace(thing, colour=say.choice(seen))
        alone = phrasings.SHARED["local", "colour"] if len(said.things) == 1 else ()
        wording = say.choice(phrasings.LOCAL_COLOUR + alone).format(the=the, colour=new.colour)
    else:
        taken = {other.noun for other in said.things}
        new = replace(thing, noun=say.choice([shape for shape in SHAPES if shape not in taken]))
        a_new = f"{article(new.colour)} {new.colour} {new.noun}"
        wording = say.choice(phrasings.LOCAL_SHAPE).format(the=the, a_new=a_new)
    return _answer(wording, _named(thing), _named(new), said.with_instead(thing, new))


def _remove(said: ParsedCaption, say: random.Random) -> dict[str, str]:
    thing = _any_thing(said, say)
    return _answer(say.choice(phrasings.REMOVE).format(the=_the(thing, say)), _named(thing), "", said.without(thing))


def _add(said: ParsedCaption, say: random.Random) -> dict[str, str]:
    taken = {thing.where for thing in said.things}
    if len(said.things) > 2 or taken & set(WHERE["centre"]):
        raise UnsuitedError("the picture is full")
    if said.style in STYLE["pixel art"]:
        raise UnsuitedError("nothing small can be seen in pixel art")
    free = [w for cell, words in WHERE.items() if cell != "centre" and not taken & set(words) for w in words]
    colours = [colour for colour in COLOURS if _visible(colour, said.ground)]
    shapes = [shape for shape in SHAPES if shape not in {thing.noun for thing in said.things}]
    new = Thing("small", say.choice(colours), "", say.choice(shapes), say.choice(free))
    wording = say.choice(phrasings.ADD).format(a_new=new)
    return _answer(wording, "", _named(new), replace(said, things=(*said.things, new)))


def _texture(said: ParsedCaption, say: random.Random) -> dict[str, str]:
    thing = _any_thing(said, say, roomy=True)
    texture = _another(TEXTURES, thing.texture or "plain", say)
    new = replace(thing, texture="" if texture == "plain" else texture)
    alone = phrasings.SHARED["texture", ""] if len(said.things) == 1 else ()
    words = {"the": _the(thing, say), "texture": texture, "kind": thing.noun}
    return _answer(
        say.choice(phrasings.TEXTURE + alone).format(**words),
        _patterned(thing),
        _patterned(new),
        said.with_instead(thing, new),
    )


def _background(said: ParsedCaption, say: random.Random) -> dict[str, str]:
    others = [name for name, words in GROUND.items() if said.ground not in words]
    seen = [name for name in others if all(_visible(thing.colour, GROUND[name][0]) for thing in said.things)]
    if not seen:
        raise UnsuitedError("something would vanish on every other background")
    name = say.choice(seen)
    wording = say.choice(phrasings.BACKGROUND + phrasings.SHARED.get(("background", name), ()))
    stays = ", ".join(_named(thing) for thing in said.things)
    return _answer(wording.format(background=name), stays, name, replace(said, ground=say.choice(GROUND[name])))


def _global(said: ParsedCaption, say: random.Random) -> dict[str, str]:
    if said.style:
        raise UnsuitedError("weather is for photos")
    name = say.choice([name for name, words in WEATHER.items() if said.weather not in words])
    wording = say.choice(phrasings.GLOBAL[name] + phrasings.SHARED.get(("global", name), ()))
    return _answer(wording, "", name, replace(said, weather=say.choice(WEATHER[name])))


def _style(said: ParsedCaption, say: random.Random) -> dict[str, str]:
    if said.weather:
        raise UnsuitedError("only a clear picture can be redrawn")
    name = say.choice([name for name, words in STYLE.items() if said.style not in words])
    wording = say.choice(phrasings.STYLE + phrasings.SHARED.get(("style", name), ()))
    return _answer(wording.format(a_style=phrasings.A_STYLE[name]), "", name, replace(said, style=say.choice(STYLE[name])))


def _text(said: ParsedCaption, say: random.Random) -> dict[str, str]:
    cards = [thing for thing in said.things if thing.noun.startswith("card")]
    if not cards:
        raise UnsuitedError("there is no card in the picture")
    card = say.choice(cards)
    old = card.noun[-1]
    letter = _another(LETTERS, old, say)
    wording = say.choice(phrasings.TEXT + phrasings.SHARED["text", ""])
    new = replace(card, noun=card.noun[:-1] + letter)
    wording = wording.format(the=_the(card, say), letter=letter, old=old)
    return _answer(wording, _named(card), _named(new), said.with_instead(card, new))


_SCENE_TASKS = {
    "local": _local,
    "remove": _remove,
    "add": _add,
    "texture": _texture,
    "background": _background,
    "global": _global,
    "style": _style,
    "text": _text,
}
