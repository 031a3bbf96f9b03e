"""The interface of every LLM: chat messages in, one text out.

Messages are in the usual form [{"role": "system" | "user" | "assistant", "content": "..."}].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from emuedit.models.constrained_decoding import Schema

Message = dict[str, str]
TEMPERATURE, TOP_P = 0.9, 0.9
"""Emu Edit's sampling parameters (arXiv 2311.10089)."""


class LLMError(RuntimeError):
    """The LLM gave no text, and asking again at once would not help; whether it may later, its cause tells."""


class LLMRefusalError(LLMError):
    """The LLM, or a content filter before or after it, answers, but not this question. Other questions are not affected."""


class CutAnswerError(LLMError):
    """The answer ended at the limit of tokens. `text` is its beginning; with a higher limit the same question has an answer."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


def merge_system_message(messages: list[Message]) -> list[Message]:
    """The conversation for a model without a system role: the system text begins the first message of the user."""
    if not has_system_message(messages):
        return messages
    system, *others = messages
    if others and others[0]["role"] == "user":
        first, *others = others
        return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *others]
    return [{"role": "user", "content": system["content"]}, *others]


def has_system_message(messages: list[Message]) -> bool:
    """Whether the first message has the role `system`."""
    return bool(messages) and messages[0]["role"] == "system"


@runtime_checkable
class LLM(Protocol):
    """An object that answers chat messages with text."""

    def write(
        self,
        messages: list[Message],
        *,
        seed: int,
        temperature: float | None = TEMPERATURE,
        top_p: float | None = TOP_P,
        schema: Schema | None = None,
    ) -> str:
        """Answer these messages. The same messages and seed give the same text, as far as the LLM supports it.

        Temperature 0 is greedy; None leaves temperature or top_p to the LLM. With `schema`, a JSON Schema, the answer is
        JSON of that schema if the LLM supports constrained decoding. Raises LLMError when there is no text,
        LLMRefusalError when there is none to this question alone, and CutAnswerError when a limit that the user sets cut it.
        """
        ...
