"""What a llm is asked, and what its answer must be: one JSON object with four texts.

Emu Edit's agents give an instruction, an output caption and the objects to update or add (arXiv 2311.10089, section 3).
The keys are ours.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["to_map", "from_map"]
BOTH_WAYS = ("depth", "sketch", "normal", "pose", "segmap")
"""Tasks that go from a picture to a map of it, or from the map to the picture."""

KEYS = ("instruction", "original_object", "edited_object", "output_caption")

NEEDED, WELCOME, UNUSED = "needed", "welcome", "unused"
OBJECTS: dict[str, tuple[str, str]] = {  # task -> what is to be said of (original_object, edited_object); other tasks: neither
    "local": (NEEDED, NEEDED),
    "remove": (NEEDED, UNUSED),
    "add": (UNUSED, NEEDED),
    "texture": (NEEDED, NEEDED),
    "background": (WELCOME, NEEDED),  # the objects that stay; the new background
    "global": (UNUSED, WELCOME),
    "style": (UNUSED, WELCOME),
    "text": (NEEDED, NEEDED),  # what carries the writing, before and after
    "detect": (NEEDED, WELCOME),
    "segment": (NEEDED, WELCOME),
    "color": (UNUSED, NEEDED),  # the filter's name
}
_SAME_CAPTION = ("color",)  # a caption seldom says how bright a picture is
_REFUSALS = re.compile(
    r"\s*(i['’]?m sorry|i am sorry|sorry|i can(not|['’]t)|i won['’]t|i am unable|unfortunately)", re.IGNORECASE
)
UNSUITED = "I cannot:"
"""How a llm says that the caption has nothing this task could edit, alone or as its instruction. It is not asked again."""
_TEXT = r"^\S.{0,299}$"
_MAYBE = r"^.{0,299}$"
"""What a text may be: one line, not endless (ours), for a needed one not empty. Patterns, as strict endpoints refuse lengths."""


@dataclass(frozen=True)
class Question:
    """A caption and the task to find an edit for; `direction` for the tasks of BOTH_WAYS only."""

    task: str
    caption: str
    direction: Direction | None = None

    def __str__(self) -> str:
        """The flat JSON object that ends the message."""
        asked = {"task": self.task, "caption": self.caption}
        return json.dumps(asked | ({"direction": self.direction} if self.direction else {}), ensure_ascii=False)


@dataclass(frozen=True)
class Edit:
    """A good answer; objects that the task has no use for are None."""

    instruction: str
    original_object: str | None
    edited_object: str | None
    output_caption: str


class AnswerError(ValueError):
    """An answer that is of no use. `reason` is one word for the records; the message tells the llm what to mend."""

    def __init__(self, reason: str, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.reason, self.final = reason, final


def schema(task: str, choices: tuple[str, ...] = ()) -> dict[str, Any]:
    """JSON Schema of a good answer, for writers that can be held to one: all keys, in order, and nothing else.

    It keeps to what OpenAI's strict mode takes. `read` still has the last word: no schema says "not the caption again".
    """
    original, edited = OBJECTS.get(task, (UNUSED, UNUSED))
    needs = dict(zip(KEYS, (NEEDED, original, edited, NEEDED), strict=True))
    allowed: dict[str, dict[str, Any]] = {NEEDED: {"pattern": _TEXT}, WELCOME: {"pattern": _MAYBE}, UNUSED: {"enum": [""]}}
    texts = {key: {"type": "string", **allowed[need]} for key, need in needs.items()}
    if choices:
        texts["edited_object"] = {"type": "string", "enum": list(choices)}
    return {"type": "object", "properties": texts, "required": list(KEYS), "additionalProperties": False}


def read(text: str, asked: Question, max_words: int, choices: tuple[str, ...] = ()) -> Edit:
    """The edit that an answer holds. `choices`: what edited_object may be, if not anything.

    Words around the JSON object are forgiven when there is exactly one: chat models greet and put it into a code block, and
    what is meant is plain. No object, several, a lost or empty key, nothing changed or an instruction of more than `max_words`
    words (the caption, where it is repeated, not counted): AnswerError. Unknown keys are ignored.
    """
    found = _the_object(text)
    for key in KEYS:
        if key not in found:
            raise AnswerError("lost_key", f"the key {key!r} is missing; want {', '.join(KEYS)}")
        if not isinstance(found[key], str | None):
            raise AnswerError("no_text", f"the value of {key!r} must be text, got {json.dumps(found[key])[:80]}")
    values = {key: " ".join((found[key] or "").split()) for key in KEYS}
    if values["instruction"].startswith(UNSUITED):
        raise AnswerError("refused", values["instruction"], final=True)
    original, edited = OBJECTS.get(asked.task, (UNUSED, UNUSED))
    needs = {"instruction": NEEDED, "original_object": original, "edited_object": edited, "output_caption": NEEDED}
    for key, need in needs.items():
        if need == NEEDED and not values[key]:
            raise AnswerError("empty", f"the value of {key!r} is empty; the task {asked.task!r} needs it")
    if choices and values["edited_object"] not in choices:
        raise AnswerError(
            "unknown_choice", f"'edited_object' must be one of {', '.join(choices)}; got {values['edited_object']!r}"
        )
    if asked.task not in _SAME_CAPTION and _bare(values["output_caption"]) == _bare(asked.caption):
        raise AnswerError("unchanged", "'output_caption' is the caption you were given; it must say what the edit changes")
    n_words = len(values["instruction"].casefold().replace(asked.caption.casefold(), "").split())
    if n_words > max_words:
        raise AnswerError("too_long", f"the instruction has {n_words} words; want {max_words} at most")
    return Edit(
        values["instruction"],
        values["original_object"] or None if original != UNUSED else None,
        values["edited_object"] or None if edited != UNUSED else None,
        values["output_caption"],
    )


def _the_object(text: str) -> dict[str, Any]:
    decoder, found, at = json.JSONDecoder(), [], 0
    while (start := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, start)
            found.append(value)
        except (json.JSONDecodeError, RecursionError):
            at = start + 1
    if len(found) == 1:
        return dict(found[0])
    if found:
        raise AnswerError("several", f"there are {len(found)} JSON objects in the answer; want one")
    if text.strip().startswith(UNSUITED):
        raise AnswerError("refused", text.strip(), final=True)
    if _REFUSALS.match(text):
        raise AnswerError("refused", "there is no JSON object in the answer; the caption describes a harmless picture to edit")
    raise AnswerError("no_json", "there is no whole JSON object in the answer")


def _bare(caption: str) -> str:
    return " ".join(caption.casefold().split()).rstrip(" .!")
