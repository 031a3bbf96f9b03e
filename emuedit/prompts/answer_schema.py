"""The question to an LLM and its answer: one JSON object with four texts.

Emu Edit's task-specific agents give an instruction, an output caption and the objects to update or add (arXiv
2311.10089, section 3). The names of the keys are our own.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from emuedit.data.text_tables import is_unicode
from emuedit.tasks import Need, get_task

Direction = Literal["to_map", "from_map"]

ANSWER_KEYS = ("instruction", "original_object", "edited_object", "output_caption")
_OBJECT_KEYS = ANSWER_KEYS[1:3]

_REFUSAL = re.compile(r"\s*(i['’]?m sorry|i am sorry|sorry|i can(not|['’]t)|i won['’]t|i am unable|unfortunately)", re.IGNORECASE)
CANNOT_EDIT_PREFIX = "I cannot:"
"""Start of an answer, or of its instruction, when the caption has nothing to edit. Such an answer is not retried."""
_CANNOT_EDIT = re.compile(r"\W*i\W+can\s?not\W*:", re.IGNORECASE)
"""The prefix as LLMs write it: in another case, in bold, with a space before the colon."""
_REFUSED_VERBS = (
    "add|alter|apply|assist|change|complete|comply|create|do|edit|find|fulfil|fulfill|generate|help|identify|make(?!\\s+out\\b)|modify|"
    "perform|proceed|process|produce|provide|remove|replace"
)
_REFUSED_INSTRUCTION = re.compile(
    rf"\W*(i\s+(can\s?not|can['’]t)(\W*$|\s+(\w+ly\s+)?({_REFUSED_VERBS})\b)|i(\s+a|['’])m\s+(unable|sorry)\b)", re.IGNORECASE
)
"""What an LLM cannot do, and apologies. Instructions may begin with what their author cannot see: "I can't see the faces, ...".
"""
_REQUEST = re.compile(
    r"(?:[,;.:]|\b(?:but|so|and)\b)\s*(?:please\s+|so\s+|and\s+)*(?:add|blur|box|brighten|change|circle|clear|colou?r|cover|darken|"
    r"delete|draw|erase|frame|get rid|give|highlight|hide|lighten|make|mark|outline|point|put|recolou?r|remove|replace|"
    r"segment|sharpen|show|swap|take|turn)\b",
    re.IGNORECASE,
)
"""The request that follows the beginning of a wish: "I can't find the dog, please put a box around it"."""
_START_OF_THOUGHTS = ("<think>", "[THINK]", "<seed:think>")
_END_OF_THOUGHTS = re.compile(r"</(?:seed:)?think>|\[/THINK\]")
"""Around what a reasoning model writes before its answer (Qwen and DeepSeek, Mistral, Seed), which may contain JSON objects. The
start is missing if the chat template ends in it."""
_START_OF_JSON = re.compile(r"\s*(```\w*\s*)?\{")
_REQUIRED_PATTERN = r"^\S.{0,299}$"
_OPTIONAL_PATTERN = r"^.{0,299}$"
_CAPTION_PATTERN = r"^\S.{0,999}$"
"""Texts are single lines of at most 300 characters, captions and instructions that contain one of 1000, so that a caption of 60
words is not cut (our own choice). The patterns bound the answers of a model on this machine. Endpoints do not get them: some
reject every pattern, and others `\\S`."""

_MAX_OBJECT_WORDS, _MAX_OBJECT_CHARS = 15, 100
"""Of the name of an object. The prompt asks for two or three words that a detector understands; these bounds are our own."""


@dataclass(frozen=True)
class Question:
    """A caption, and the task to find an edit for. `direction` is for bidirectional tasks only."""

    task: str
    caption: str
    direction: Direction | None = None

    def __str__(self) -> str:
        """The flat JSON object that ends the message."""
        values = {"task": self.task, "caption": self.caption}
        return json.dumps(values | ({"direction": self.direction} if self.direction else {}), ensure_ascii=False)


@dataclass(frozen=True)
class ProposedEdit:
    """A valid answer. Objects that the task does not use are None."""

    instruction: str
    original_object: str | None
    edited_object: str | None
    output_caption: str


class AnswerError(ValueError):
    """An unusable answer. `reason` is one word for the records; the message tells the LLM what to fix.

    `final`: asking again would not help.
    """

    def __init__(self, reason: str, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.reason, self.final = reason, final


def answer_schema(task: str, choices: tuple[str, ...] = ()) -> dict[str, Any]:
    """JSON Schema of a valid answer, for constrained decoding: all keys, in order, and no others.

    `choices`: the only values of edited_object, if any are given. Without its patterns, which `OpenAILLM` leaves out, the
    schema uses only what OpenAI's strict mode supports. `parse_answer` checks more: a schema cannot express that the output
    caption must differ from the caption. Raises UnknownTaskError for a task that is not in the table of tasks.
    """
    constraints: dict[Need, dict[str, Any]] = {
        "required": {"pattern": _REQUIRED_PATTERN},
        "optional": {"pattern": _OPTIONAL_PATTERN},
        "unused": {"enum": [""]},
    }
    properties = {key: {"type": "string", **constraints[need]} for key, need in _needs(task).items()}
    properties["output_caption"]["pattern"] = _CAPTION_PATTERN
    if get_task(task).bidirectional:  # the instruction of a map-to-image edit describes the image
        properties["instruction"]["pattern"] = _CAPTION_PATTERN
    if choices:
        properties["edited_object"] = {"type": "string", "enum": list(choices)}
    return {"type": "object", "properties": properties, "required": list(ANSWER_KEYS), "additionalProperties": False}


def without_thoughts(text: str) -> str:
    """An answer without the thoughts of a reasoning model before it."""
    return _END_OF_THOUGHTS.split(text)[-1]


def parse_answer(
    text: str, question: Question, max_words: int, choices: tuple[str, ...] = (), *, is_cut: bool = False
) -> ProposedEdit:
    """Parse the answer to a question. `choices`: the only values of edited_object, if any are given.

    Text around the JSON object is ignored, because chat models greet and use code blocks, as are the thoughts of a reasoning
    model, also those that do not end. `is_cut`: the text ended at a limit of tokens; all of it may be thoughts, unless their end
    is in it or it begins with the object. Unknown keys are ignored. Line breaks in a text become spaces. A comma within the name
    of an object is removed, since commas separate names; only the objects of the task `background` are a list. Raises AnswerError
    for no object or several, a missing or empty key, a lone surrogate, a refusal, an unchanged caption, an object whose name has
    more than 15 words or 100 characters, and an instruction of more than `max_words` words. The caption is not counted where it
    is repeated; in the direction `from_map` its number of words is added to `max_words`.
    """
    values = _texts_of(_find_json_object(text, is_cut))
    _check_refusal(values["instruction"])
    if question.task != "background":
        for key in _OBJECT_KEYS:
            values[key] = " ".join(values[key].replace(",", " ").split())
    needs = _needs(question.task)
    for key, need in needs.items():
        if need == "required" and not values[key]:
            raise AnswerError("empty", f"the value of {key!r} is empty; the task {question.task!r} needs it")
    values["edited_object"] = {choice.casefold(): choice for choice in choices}.get(
        values["edited_object"].casefold(), values["edited_object"]
    )
    if choices and values["edited_object"] not in choices:
        raise AnswerError(
            "unknown_choice", f"'edited_object' must be one of {', '.join(choices)}; got {values['edited_object']!r}"
        )
    for key in _OBJECT_KEYS:
        _check_object(key, values[key])
    _check_change(values, question, max_words)
    return ProposedEdit(
        values["instruction"],
        values["original_object"] or None if needs["original_object"] != "unused" else None,
        values["edited_object"] or None if needs["edited_object"] != "unused" else None,
        values["output_caption"],
    )


def _texts_of(answer: dict[str, Any]) -> dict[str, str]:
    """The text of each key, in one line. Raises AnswerError for a missing key and for what is not a text."""
    for key in ANSWER_KEYS:
        if key not in answer:
            raise AnswerError("lost_key", f"the key {key!r} is missing; want {', '.join(ANSWER_KEYS)}")
        if not isinstance(answer[key], str | None):
            raise AnswerError("no_text", f"the value of {key!r} must be text, got {json.dumps(answer[key])[:80]}")
    values = {key: " ".join((answer[key] or "").split()) for key in ANSWER_KEYS}
    for key, value in values.items():
        if not is_unicode(value):
            raise AnswerError("not_unicode", f"the value of {key!r} contains a lone surrogate: {json.dumps(value)[:80]}")
    return values


def _check_refusal(instruction: str) -> None:
    if _CANNOT_EDIT.match(instruction):
        raise AnswerError("refused", instruction, final=True)
    if _REFUSED_INSTRUCTION.match(instruction) and not _REQUEST.search(instruction):
        raise AnswerError(
            "refused",
            f"'instruction' must be an edit that somebody asks for, got {instruction[:80]!r}; begin it with "
            f"{CANNOT_EDIT_PREFIX!r} only if nothing in the caption can be edited",
        )


def _needs(task: str) -> dict[str, Need]:
    """Whether each key of the answer must have a text."""
    row = get_task(task)
    return dict(zip(ANSWER_KEYS, ("required", row.original_object, row.edited_object, "required"), strict=True))


def _check_object(key: str, names: str) -> None:
    """Raise AnswerError for a too long name; a background has several, separated by commas."""
    for name in names.split(","):
        n_words, n_chars = len(name.split()), len(name.strip())
        if n_words > _MAX_OBJECT_WORDS or n_chars > _MAX_OBJECT_CHARS:
            raise AnswerError(
                "too_long",
                f"a name in {key!r} has {n_words} words and {n_chars} characters; want two or three words, at most "
                f"{_MAX_OBJECT_WORDS} words and {_MAX_OBJECT_CHARS} characters",
            )


def _check_change(values: dict[str, str], question: Question, max_words: int) -> None:
    changes_caption = get_task(question.task).changes_caption
    if changes_caption and _normalize_caption(values["output_caption"]) == _normalize_caption(question.caption):
        raise AnswerError("unchanged", "'output_caption' is the caption you were given; it must say what the edit changes")
    instruction, caption = values["instruction"].casefold(), _normalize_caption(question.caption)
    if question.direction == "from_map":  # an LLM seldom repeats the caption letter by letter
        max_words += len(caption.split())
    else:
        instruction = instruction.replace(caption, "")
    n_words = len(instruction.split())
    if n_words > max_words:
        raise AnswerError("too_long", f"the instruction has {n_words} words; want {max_words} at most")


def _find_json_object(text: str, is_cut: bool) -> dict[str, Any]:
    """The JSON object after the thoughts in a text: the one that has all keys, which may be repeated, or else the only one.

    Raises AnswerError when there is none, or several different ones.
    """
    *thoughts, text = _END_OF_THOUGHTS.split(text)
    may_be_thoughts = is_cut and not thoughts and not _START_OF_JSON.match(text)
    if text.lstrip().startswith(_START_OF_THOUGHTS):
        text = ""
    objects = [] if may_be_thoughts else _json_objects(text)
    complete = [value for value in objects if all(key in value for key in ANSWER_KEYS)]
    candidates = complete or objects
    different = [value for n, value in enumerate(candidates) if value not in candidates[:n]]
    if len(different) == 1:
        return dict(different[0])
    if different:
        raise AnswerError("several", f"there are {len(different)} JSON objects in the answer; want one")
    if _CANNOT_EDIT.match(text):
        raise AnswerError("refused", text.strip(), final=True)
    if _REFUSAL.match(text):
        raise AnswerError("refused", "there is no JSON object in the answer; the caption describes a harmless picture to edit")
    raise AnswerError("no_json", "there is no complete JSON object in the answer")


def _json_objects(text: str) -> list[dict[str, Any]]:
    """The complete JSON objects in a text, in order. Their texts may contain line breaks, which JSON forbids and LLMs write."""
    decoder, objects, position = json.JSONDecoder(strict=False), [], 0
    while (start := text.find("{", position)) >= 0:
        try:
            value, position = decoder.raw_decode(text, start)
            objects.append(value)
        except (json.JSONDecodeError, RecursionError):
            position = start + 1
    return objects


def _normalize_caption(caption: str) -> str:
    return " ".join(caption.casefold().split()).rstrip(" .!")
