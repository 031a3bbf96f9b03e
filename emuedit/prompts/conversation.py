"""One agent: a task's description, verbs and exemplars from a YAML file a person can edit, made into a conversation.

One agent for all tasks lacks diversity, so Emu Edit has one per task; every call samples 60 % of the exemplars, shuffles them
and names another verb (arXiv 2311.10089, section 3).
"""

import json
from pathlib import Path

from pydantic import Field

from emuedit import config
from emuedit.models.language_model import Message
from emuedit.prompts.answer_schema import BOTH_WAYS, KEYS, UNSUITED, AnswerError, Direction, Question, read
from emuedit.runtime import rng

_LONGEST_EXEMPLAR_WORDS = 20
_FORM = f"""
You are given a JSON object with a task and the caption of a photograph. Think of one edit of that photograph and answer with
one JSON object and nothing else. Its keys, each with a text:
- "instruction": what somebody would tell an assistant to do; imperative, short, in everyday words.
- "original_object": the thing in the photograph that the edit touches, in two or three words that an object detector
  understands ("brown dog"); empty where the description below says so.
- "edited_object": what is there afterwards, in the same manner; empty where the description below says so.
- "output_caption": the caption of the edited photograph. Keep the words for what the edit leaves alone.
Where the caption has nothing that such an edit could touch, answer with "{UNSUITED}" and the reason instead, or let
"instruction" say so.
"""


class AgentError(ValueError):
    """Raised for an agent whose own exemplars would not be accepted as answers."""


class Exemplar(config.Params):
    """A question and a good answer to it."""

    caption: str = Field(min_length=1)
    """Caption of the photograph."""
    direction: Direction | None = None
    """Way of the edit, for the tasks that go from pictures to maps and back."""
    answer: dict[str, str]
    """The answer: instruction, original_object, edited_object, output_caption."""


class Agent(config.Params):
    """Who asks for the edits of one task."""

    description: str = Field(min_length=1)
    """What kind of edit this is, what it is not, and what goes into the two objects."""
    verbs: tuple[str, ...] = Field(min_length=1)
    """Verbs of such instructions; each call hints at one of them."""
    choices: tuple[str, ...] = ()
    """The only values of `edited_object`, where not anything goes (the colour filters)."""
    exemplars: tuple[Exemplar, ...] = Field(min_length=5)
    """Questions with good answers."""

    def conversation(self, asked: Question, share: float, *keys: str | int) -> list[Message]:
        """What the llm is told: the description, `share` of the exemplars in a random order, a verb, the question.

        `keys` choose sample, order and verb. The last message ends in the question's JSON object.
        """
        chance = rng("agents", *keys)
        n = max(1, round(share * len(self.exemplars)))
        chosen = [self.exemplars[i] for i in chance.permutation(len(self.exemplars))[:n]]
        verb = self.verbs[chance.integers(len(self.verbs))]
        told = [{"role": "system", "content": f"{_FORM.strip()}\n\n{self.description.strip()}"}]
        for one in chosen:
            question = Question(asked.task, one.caption, one.direction)
            told.append({"role": "user", "content": str(question)})
            told.append({"role": "assistant", "content": json.dumps({key: one.answer[key] for key in KEYS})})
        return [*told, {"role": "user", "content": f"If it fits, use the verb '{verb}'.\n{asked}"}]


def again(told: list[Message], answer: str, error: AnswerError, asked: Question) -> list[Message]:
    """The conversation after a bad answer: what is wrong with it is said, and the question stands at the end again."""
    complaint = f"That cannot be used: {error}. Answer again, with one JSON object and nothing else.\n{asked}"
    return [*told, {"role": "assistant", "content": answer}, {"role": "user", "content": complaint}]


def load(folder: str | Path, task: str) -> Agent:
    """The agent of a task from `<folder>/<task>.yaml`.

    Raises ParamsError for a file that is absent or wrong, and AgentError for an exemplar that breaks the rules for answers.
    """
    path = Path(folder, f"{task}.yaml")
    agent = config.load(Agent, task, path)
    for number, one in enumerate(agent.exemplars, start=1):
        asked = Question(task, one.caption, one.direction)
        try:
            if (task in BOTH_WAYS) != (one.direction is not None):
                raise AnswerError("direction", f"want a direction for {', '.join(BOTH_WAYS)} only, got {one.direction!r}")
            read(json.dumps(one.answer), asked, _LONGEST_EXEMPLAR_WORDS, agent.choices)
        except AnswerError as error:
            raise AgentError(f"{path}, exemplar {number} ({one.caption!r}): {error}") from error
    return agent
