"""Parser of toy captions: split a caption into objects, background, weather and style, and join them again."""

import re
from dataclasses import dataclass, replace

from toyworld.scenes.caption_grammar import (
    BACKGROUND_PHRASES,
    EMPTY_SCENE,
    POSITION_PHRASES,
    STYLE_PHRASES,
    WEATHER_PHRASES,
    indefinite_article,
    join_list,
)
from toyworld.scenes.palette import COLOURS, LETTERS, POSES, SHAPES, TEXTURES


@dataclass(frozen=True)
class CaptionObject:
    """An object in a caption, as phrases of the caption. `size` and `texture` are '' if the caption omits them."""

    size: str
    colour: str
    texture: str
    noun: str
    position: str

    def __str__(self) -> str:
        words = " ".join(word for word in (self.size, self.colour, self.texture, self.noun) if word)
        return f"{indefinite_article(words)} {words} {self.position}"

    @property
    def is_shape(self) -> bool:
        """Whether the object is a plain shape. Only shapes have a size and a texture in captions."""
        return self.noun in SHAPES


@dataclass(frozen=True)
class ParsedCaption:
    """The parts of a caption, as its phrases. `weather` and `style` may be ''."""

    objects: tuple[CaptionObject, ...]
    background: str
    weather: str
    style: str

    def __str__(self) -> str:
        objects = join_list([str(caption_object) for caption_object in self.objects])
        return " ".join(part for part in (objects, self.background, self.weather, self.style) if part)

    def remove_object(self, old: CaptionObject) -> "ParsedCaption":
        """Return a copy without the object `old`."""
        return replace(self, objects=tuple(other for other in self.objects if other != old))

    def replace_object(self, old: CaptionObject, new: CaptionObject) -> "ParsedCaption":
        """Return a copy with the object `old` replaced by `new`."""
        return replace(self, objects=tuple(new if other == old else other for other in self.objects))


def _alternation(*tables: tuple[str, ...]) -> str:
    """A regular expression that matches any phrase of the tables. Longer phrases come before their prefixes."""
    phrases = sorted({phrase for table in tables for phrase in table if phrase}, key=len, reverse=True)
    return "|".join(map(re.escape, phrases))


_NOUNS = (*SHAPES, *(f"card with the letter {c}" for c in LETTERS), "person waving", *(f"person with {p}" for p in POSES))
_OBJECT = re.compile(
    rf"an? (?:(?P<size>big|small) )?(?P<colour>{_alternation(COLOURS)}) (?:(?P<texture>{_alternation(TEXTURES)}) )?"
    rf"(?P<noun>{_alternation(_NOUNS)}) (?P<position>{_alternation(*POSITION_PHRASES.values())})"
)
_SEPARATOR = re.compile(r", | and ")
_SCENE_PHRASES = re.compile(
    rf" (?P<background>{_alternation(*BACKGROUND_PHRASES.values())})"
    rf"(?: (?P<weather>{_alternation(*WEATHER_PHRASES.values())}))?"
    rf"(?: (?P<style>{_alternation(*STYLE_PHRASES.values())}))?$"
)


def parse(caption: str) -> ParsedCaption | None:
    """Parse a caption. Returns None if the caption does not follow the toy grammar."""
    objects = []
    position = len(EMPTY_SCENE) if caption.startswith(EMPTY_SCENE) else 0
    while match := _OBJECT.match(caption, position):
        objects.append(CaptionObject(**{name: words or "" for name, words in match.groupdict().items()}))
        position = match.end()
        separator = _SEPARATOR.match(caption, position)
        position = separator.end() if separator else position
    scene_phrases = _SCENE_PHRASES.match(caption, position)
    if scene_phrases is None or position == 0:
        return None
    return ParsedCaption(
        tuple(objects), scene_phrases["background"], scene_phrases["weather"] or "", scene_phrases["style"] or ""
    )
