"""The text of a chat completion, the answer of an OpenAI-compatible server; or why there is none."""

import json
import re
from typing import Any

from emuedit.models.language_model import CutAnswerError, LLMError, LLMRefusalError

FILTERED = re.compile(
    r'"(content_filter|content_policy_violation|moderation_blocked|data_inspection_failed|flagged_input)"'
    r"|(prompt|input) was flagged|for safety reasons"  # of OpenAI's invalid_prompt, which stands for malformed prompts, too
)
"""In an error, or the body of status 400 and 403: a content filter refused the question (Azure, OpenAI, Alibaba, OpenRouter)."""
_FILTER_REASON = re.compile(r"content_?filter|safety|prohibited|blocklist|spii|recitation|sensitive|refusal", re.IGNORECASE)
"""The finish reason of a completion that a content filter stopped, by OpenAI, Gemini, Zhipu and Anthropic."""
_STOPPED = {"abort", "error", "insufficient_system_resource"}
"""The finish reason of a completion that the server stopped before its end: vLLM, OpenRouter and DeepSeek."""
_REASONING_FIELDS = ("reasoning_content", "reasoning")
"""Where a server puts the thoughts of a reasoning model: SGLang, DeepSeek and older vLLM; newer vLLM, Ollama and OpenRouter."""
_MORE_TOKENS = "set instructions.endpoint: {max_tokens: ...} higher in params.yaml, or null, or the server's own limit"


class NoCompletionError(ValueError):
    """Raised for a body that is no chat completion, such as the error page of a proxy."""


class StoppedAnswerError(ConnectionError):
    """Raised for a completion that the server stopped before its end."""


def text_of(body: bytes) -> str:
    """The text of a chat completion; half of a surrogate pair becomes a question mark.

    Raises LLMRefusalError for a completion that was refused or filtered, LLMError for one that has thoughts or ran out of tokens,
    but has no text, CutAnswerError for one that ran out of tokens in its text, and, for what may be otherwise in another attempt,
    StoppedAnswerError for one that the server stopped and NoCompletionError for anything else.
    """
    try:
        completion = json.loads(body)
        if completion["choices"] == [] and not completion.get("error"):  # Gemini's endpoint, for a question that was filtered
            raise LLMRefusalError("want a text, got none: the chat completion has no choices")
        choice = completion["choices"][0]
        message, finish_reason, failure = choice.get("message", {}), choice.get("finish_reason"), choice.get("error")
        refusal, (text, thoughts) = message.get("refusal"), _text_and_thoughts(message)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NoCompletionError(f"want a chat completion, got {body[:500]!r}") from error
    if refusal or _FILTER_REASON.search(str(finish_reason)) or (failure and FILTERED.search(json.dumps(failure))):
        raise LLMRefusalError(f"want a text, got none: refusal {refusal!r}, finish_reason {finish_reason!r}, error {failure!r}")
    if failure or finish_reason in _STOPPED:
        raise StoppedAnswerError(f"want a complete answer, got one with finish_reason {finish_reason!r}, error {failure!r}")
    if not text and finish_reason == "length":
        raise LLMError(f"want a text, got none: finish_reason 'length', the model ran out of tokens before it; {_MORE_TOKENS}")
    if not text and thoughts:
        raise LLMError(
            f"want a text, got only the thoughts of a reasoning model: {str(thoughts)[:500]!r}; start the server with the "
            "reasoning parser of this model, or without one, or disable the model's thoughts"
        )
    if not isinstance(text, str):
        raise NoCompletionError(f"want a text in a chat completion, got {body[:500]!r}")
    text = text.encode("utf-8", "replace").decode()
    if finish_reason == "length":
        raise CutAnswerError(f"want a complete text, got one that was cut: finish_reason 'length'; {_MORE_TOKENS}", text)
    return text


def _text_and_thoughts(message: dict[str, Any]) -> tuple[Any, Any]:
    """The content of a message and the thoughts beside it. Mistral's reasoning models put both into a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        texts = [part["text"] for part in content if part["type"] == "text"]
        return "".join(texts), [part for part in content if part["type"] != "text"]
    return content, next((message[name] for name in _REASONING_FIELDS if message.get(name)), None)
