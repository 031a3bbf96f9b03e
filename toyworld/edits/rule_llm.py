"""A rule-based LLM for toy captions. It has the interface of a chat model and sometimes gives a bad answer on purpose.

It reads only the last message, which must end in a JSON object with the keys `task` and `caption`. It answers with a
JSON object that describes an edit: `instruction`, `original_object`, `edited_object`, `output_caption`. If the request
has `"direction": "from_map"`, the edit goes from the map to the image. `output_caption` always describes the map.
`caption_edits` writes the edits.
"""

import json
import random
from dataclasses import dataclass
from typing import Any

from toyworld.edits.caption_edits import KEYS, EditAnswer, UnsuitableCaptionError, write_edit
from toyworld.edits.caption_parser import parse
from toyworld.edits.phrasings import TemplateSplit, template_table

BAD_ANSWER_RATE = 0.06
"""Default share of answers that `corrupt_answer` makes unusable."""


@dataclass(frozen=True)
class RuleLLM:
    """An LLM for captions of the toy world. `bad_answer_rate` lies in [0, 1]; `templates` names the split of its wordings."""

    bad_answer_rate: float = BAD_ANSWER_RATE
    templates: TemplateSplit = "training"

    def write(
        self,
        messages: list[dict[str, str]],
        *,
        seed: int,
        temperature: float | None = 0.9,
        top_p: float | None = 0.9,  # noqa: ARG002 - part of the LLM interface; there is no token distribution to truncate
        schema: dict[str, Any] | None = None,  # noqa: ARG002 - part of the LLM interface; bad answers are wanted
    ) -> str:
        """Answer the last message. Equal messages and seeds give equal answers. At temperature 0 no answer is bad."""
        message = messages[-1]["content"]
        rng = random.Random(f"{seed}/{message}")
        request = _parse_request(message)
        if request is None:
            return "Please end your message with a JSON object that has the keys task and caption."
        caption = parse(request["caption"])
        if caption is None:
            return f"I do not parse this caption: {request['caption']}"
        try:
            from_map = request.get("direction") == "from_map"
            answer = write_edit(request["task"], caption, rng, from_map, template_table(self.templates))
        except UnsuitableCaptionError as reason:
            return f"I cannot: {reason}."
        is_bad = temperature != 0 and rng.random() < self.bad_answer_rate
        return corrupt_answer(answer, rng) if is_bad else json.dumps(answer)


def toy_llm() -> RuleLLM:
    """The default LLM of the toy world: `llm: toyworld.edits.rule_llm:toy_llm` in `params.yaml`."""
    return RuleLLM()


def held_out_wordings() -> RuleLLM:
    """The same LLM with the templates that no training data use, and without bad answers: to measure the task predictor."""
    return RuleLLM(bad_answer_rate=0.0, templates="held_out")


def _parse_request(message: str) -> dict[str, str] | None:
    """The JSON object at the end of the message, or None if there is none with a task and a caption."""
    start = message.rfind("{")
    try:
        request = json.loads(message[start:])
    except json.JSONDecodeError:
        return None
    is_valid = isinstance(request, dict) and all(isinstance(request.get(key), str) for key in ("task", "caption"))
    return request if is_valid else None


def corrupt_answer(answer: EditAnswer, rng: random.Random) -> str:
    """Corrupt an answer in a way typical of chat models.

    Five ways: prose around the JSON, a truncated answer, a missing key, an empty instruction, a refusal.
    """
    text = json.dumps(answer)
    missing_key = rng.choice(KEYS)
    incomplete = {key: value for key, value in answer.items() if key != missing_key}
    return rng.choice(
        (
            f"Sure! Here is the edit you asked for:\n{text}\nI hope it helps.",
            text[: len(text) * 2 // 3],
            json.dumps(incomplete),
            json.dumps({**answer, "instruction": ""}),
            "I am sorry, but I cannot help with that.",
        )
    )
