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
        JSON of that schema if the LLM supports constrained decoding. Raises LLMError when there is no text, and
        LLMRefusalError when there is none to this question alone.
        """
        ...
