"""Captions taken apart and put together again: what a reader of the toy world's language understands."""

import re
from dataclasses import dataclass, replace

from toyworld.scenes.caption_grammar import GROUND, NOBODY_THERE, STYLE, WEATHER, WHERE, article, listed
from toyworld.scenes.palette import COLOURS, LETTERS, POSES, SHAPES, TEXTURES


@dataclass(frozen=True)
class Thing:
    """An object as a caption names it; size and texture may be ''."""

    size: str
    colour: str
    texture: str
    noun: str
    where: str

    def __str__(self) -> str:
        words = " ".join(word for word in (self.size, self.colour, self.texture, self.noun) if word)
        return f"{article(words)} {words} {self.where}"

    @property
    def is_shape(self) -> bool:
        """A plain shape: it has a size and may wear a texture."""
        return self.noun in SHAPES


@dataclass(frozen=True)
class ParsedCaption:
    """A caption in parts, each in the words that were used."""

    things: tuple[Thing, ...]
    ground: str
    weather: str
    style: str

    def __str__(self) -> str:
        things = listed([str(thing) for thing in self.things])
        return " ".join(part for part in (things, self.ground, self.weather, self.style) if part)

    def without(self, thing: Thing) -> "ParsedCaption":
        """The same caption, one object less."""
        return replace(self, things=tuple(other for other in self.things if other != thing))

    def with_instead(self, thing: Thing, new: Thing) -> "ParsedCaption":
        """The same caption, `thing` replaced by `new`."""
        return replace(self, things=tuple(new if other == thing else other for other in self.things))


def _one_of(*tables: tuple[str, ...]) -> str:
    phrases = sorted({phrase for table in tables for phrase in table if phrase}, key=len, reverse=True)
    return "|".join(map(re.escape, phrases))


_NOUNS = (*SHAPES, *(f"card with the letter {c}" for c in LETTERS), "person waving", *(f"person with {p}" for p in POSES))
_THING = re.compile(
    rf"an? (?:(?P<size>big|small) )?(?P<colour>{_one_of(COLOURS)}) (?:(?P<texture>{_one_of(TEXTURES)}) )?"
    rf"(?P<noun>{_one_of(_NOUNS)}) (?P<where>{_one_of(*WHERE.values())})"
)
_REST = re.compile(
    rf" (?P<ground>{_one_of(*GROUND.values())})"
    rf"(?: (?P<weather>{_one_of(*WEATHER.values())}))?(?: (?P<style>{_one_of(*STYLE.values())}))?$"
)


def parse(caption: str) -> ParsedCaption | None:
    """The parts of a caption, or None where it is not of this language."""
    things = []
    at = len(NOBODY_THERE) if caption.startswith(NOBODY_THERE) else 0
    while found := _THING.match(caption, at):
        things.append(Thing(**{k: v or "" for k, v in found.groupdict().items()}))
        at = found.end()
        joint = re.compile(r", | and ").match(caption, at)
        at = joint.end() if joint else at
    rest = _REST.match(caption, at)
    if rest is None or at == 0:
        return None
    return ParsedCaption(tuple(things), rest["ground"], rest["weather"] or "", rest["style"] or "")
