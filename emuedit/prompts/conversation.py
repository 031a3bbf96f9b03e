"""Task prompts, one YAML file per task that people can edit, and the conversations that are built from them.

Emu Edit uses one agent per task, because a single agent for all tasks gives less diverse instructions. Every call
samples 60 % of the exemplars, shuffles them and suggests another verb (arXiv 2311.10089, section 3).
"""

import json
from pathlib import Path

from pydantic import Field

from emuedit import config
from emuedit.models.language_model import Message
from emuedit.prompts.answer_schema import (
    ANSWER_KEYS,
    CANNOT_EDIT_PREFIX,
    AnswerError,
    Direction,
    Question,
    parse_answer,
    without_thoughts,
)
from emuedit.runtime import rng
from emuedit.tasks import TASKS, get_task

_MAX_EXEMPLAR_WORDS = 20
_MAX_QUOTED_CHARS = 1500
"""Of an unusable answer; a usable one is shorter."""
_ANSWER_FORMAT = f"""
You are given a JSON object with a task and the caption of a photograph. Think of one edit of that photograph and answer with
one JSON object and nothing else. Its keys, each with a text:
- "instruction": what somebody would tell an assistant to do; short, in everyday words.
- "original_object": the thing in the photograph that the edit touches, in two or three words that an object detector
  understands ("brown dog"); empty if the description below says so.
- "edited_object": what is there afterwards, in the same form; empty if the description below says so.
- "output_caption": the caption of the edited photograph. Keep the words for what the edit leaves alone.
If nothing in the caption can be edited in this way, answer with "{CANNOT_EDIT_PREFIX}" and the reason, or begin "instruction"
with "{CANNOT_EDIT_PREFIX}".
"""
MANNERS = (
    "an order", "an order", "a polite request", "a question", "a wish, beginning with I", "a few words without a verb",
    "a careless message with a typing error",
)  # fmt: skip
"""Styles of an instruction; each call requests one of them. Our own addition: Emu Edit varies only the verb."""


class TaskPromptError(ValueError):
    """Raised for a task prompt with an exemplar that is not a valid answer."""


class Exemplar(config.Params):
    """A question with a valid answer."""

    caption: str = Field(min_length=1)
    """Caption of the photograph."""
    direction: Direction | None = None
    """Direction of the edit, for tasks that convert images to maps and maps to images."""
    answer: dict[str, str]
    """The answer: instruction, original_object, edited_object, output_caption."""


class TaskPrompt(config.Params):
    """The prompt that asks for edits of one task. Emu Edit calls it a task-specific agent."""

    description: str = Field(min_length=1)
    """What kind of edit this is, what it is not, and what goes into the two objects."""
    verbs: tuple[str, ...] = Field(min_length=1)
    """Verbs of such instructions; each call suggests one of them."""
    choices: tuple[str, ...] = ()
    """The only values of `edited_object`, if they are restricted (the colour filters)."""
    exemplars: tuple[Exemplar, ...] = Field(min_length=5)
    """Questions with valid answers."""

    def build_conversation(self, question: Question, share: float, *keys: str | int) -> list[Message]:
        """Messages for the LLM: the description, `share` of the exemplars in random order, a verb, a manner and the question.

        `keys` seed the choice of exemplars, their order, the verb and the manner. The last message ends in the question's JSON
        object.
        """
        random = rng("agents", *keys)
        n_exemplars = max(1, round(share * len(self.exemplars)))
        sample = [self.exemplars[i] for i in random.permutation(len(self.exemplars))[:n_exemplars]]
        verb = self.verbs[random.integers(len(self.verbs))]
        manner = MANNERS[random.integers(len(MANNERS))]
        messages = [{"role": "system", "content": f"{_ANSWER_FORMAT.strip()}\n\n{self.description.strip()}"}]
        for exemplar in sample:
            exemplar_question = Question(question.task, exemplar.caption, exemplar.direction)
            answer = json.dumps({key: exemplar.answer[key] for key in ANSWER_KEYS})
            messages.append({"role": "user", "content": str(exemplar_question)})
            messages.append({"role": "assistant", "content": answer})
        return [*messages, {"role": "user", "content": f"If it fits, use the verb '{verb}'. Say it as {manner}.\n{question}"}]


def retry_conversation(messages: list[Message], answer: str, error: AnswerError, question: Question) -> list[Message]:
    """The conversation after an unusable answer: it states the error and ends in the question again.

    Thoughts are left out, and the answer is cut, since every token is paid for. Endpoints refuse an empty message: of an empty
    answer, only the complaint is added, to the last message, since roles have to alternate.
    """
    complaint = f"That cannot be used: {error}. Answer again, with one JSON object and nothing else.\n{question}"
    quoted = without_thoughts(answer).strip()[:_MAX_QUOTED_CHARS]
    if not quoted:
        *earlier, last = messages
        return [*earlier, {**last, "content": f"{last['content']}\n\n{complaint}"}]
    return [*messages, {"role": "assistant", "content": quoted}, {"role": "user", "content": complaint}]


def load_task_prompt(folder: str | Path, task: str) -> TaskPrompt:
    """Load the prompt of a task from `<folder>/<task>.yaml`.

    Raises ParamsError for a missing or invalid file, and TaskPromptError for an exemplar that is not a valid answer.
    """
    path = Path(folder, f"{task}.yaml")
    prompt = config.load(TaskPrompt, task, path)
    for number, exemplar in enumerate(prompt.exemplars, start=1):
        question = Question(task, exemplar.caption, exemplar.direction)
        try:
            if get_task(task).bidirectional != (exemplar.direction is not None):
                tasks = ", ".join(row.name for row in TASKS if row.bidirectional)
                raise AnswerError("direction", f"want a direction for {tasks} only, got {exemplar.direction!r}")
            parse_answer(json.dumps(exemplar.answer), question, _MAX_EXEMPLAR_WORDS, prompt.choices)
        except AnswerError as error:
            raise TaskPromptError(f"{path}, exemplar {number} ({exemplar.caption!r}): {error}") from error
    return prompt
