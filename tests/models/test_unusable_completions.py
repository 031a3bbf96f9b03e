"""Completions with status 200 that are no answer: refused, filtered, stopped by the server, or thoughts alone."""

from pathlib import Path
from typing import Any

import pytest

from emuedit.failures import FailureKind, kind_of
from emuedit.models.answer_cache import CachingLLM
from emuedit.models.language_model import LLMError, LLMRefusalError
from emuedit.models.openai_llm import EndpointSettings, OpenAILLM

MESSAGES = [{"role": "user", "content": "red circle"}]
DISCONNECTED = {"code": 502, "message": "Provider disconnected"}


def completion(content: Any, finish_reason: str | None, thoughts: dict[str, str] | None = None, **choice: Any) -> Any:
    message = {"role": "assistant", "content": content} | (thoughts or {})
    return 200, {"choices": [{"message": message, "finish_reason": finish_reason} | choice]}


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "the answer is {}"}]}
"""A part of the content of Mistral's reasoning models."""


def ask(endpoint: Any, path: Path, retries: int) -> str:
    llm = OpenAILLM(endpoint.url, "m", EndpointSettings(retries=retries), backoff_s=0.001)
    return CachingLLM(llm, path).write(MESSAGES, seed=1)


THOUGHTS = [
    completion(None, "stop", {"reasoning_content": "the answer is {}"}),
    completion(None, "stop", {"reasoning": "the answer is {}"}),
    completion("", "stop", {"reasoning_content": "the answer is {}"}),
    completion([THINKING], "stop"),
]
STOPPED = [
    completion('{"instruction": "make', "abort"),
    completion("", "abort"),
    completion("half", "error"),
    completion("", "error", error=DISCONNECTED),
    completion(None, "error", error=DISCONNECTED),
    completion("half", None, error=DISCONNECTED),
    completion("half", "insufficient_system_resource"),
]
WITHOUT_TEXT = [
    completion(None, "stop"),
    completion(None, "tool_calls"),
    completion(["parts"], "stop"),
    completion([{"text": "of no type"}], "stop"),
    (200, {"choices": []} | {"error": DISCONNECTED}),
    (200, {"choices": None}),
]


@pytest.mark.parametrize("body", THOUGHTS)
def test_thoughts_without_an_answer_are_a_failure_of_the_server_s_settings(endpoint: Any, tmp_path: Path, body: Any) -> None:
    endpoint.answers = [body]
    with pytest.raises(
        LLMError, match=r"only the thoughts .*the answer is .*; start the server with the reasoning parser"
    ) as error:
        ask(endpoint, tmp_path / "answers.jsonl", retries=2)
    assert not isinstance(error.value, LLMRefusalError)
    assert len(endpoint.requests) == 1, "the same seed gives the same thoughts"


def test_a_text_in_parts_is_joined_without_the_thoughts(endpoint: Any, tmp_path: Path) -> None:
    endpoint.answers = [completion([THINKING, {"type": "text", "text": '{"a": '}, {"type": "text", "text": "1}"}], "stop")]
    assert ask(endpoint, tmp_path / "answers.jsonl", retries=0) == '{"a": 1}'


@pytest.mark.parametrize("body", STOPPED)
def test_an_answer_that_the_server_stopped_is_asked_for_again(endpoint: Any, tmp_path: Path, body: Any) -> None:
    endpoint.answers = [body, endpoint.chat_response("ok")]
    assert ask(endpoint, tmp_path / "answers.jsonl", retries=1) == "ok"
    assert len(endpoint.requests) == 2
    endpoint.answers = [body]
    with pytest.raises(
        LLMError, match="did not answer in 1 attempts: want a complete answer, got one with finish_reason"
    ) as error:
        ask(endpoint, tmp_path / "others.jsonl", retries=0)
    assert kind_of(error.value) is FailureKind.NETWORK, "the stage is tried again later"


@pytest.mark.parametrize("body", THOUGHTS + STOPPED + WITHOUT_TEXT)
def test_what_is_no_answer_is_not_kept(endpoint: Any, tmp_path: Path, body: Any) -> None:
    endpoint.answers = [body, endpoint.chat_response("ok")]
    with pytest.raises(LLMError) as error:
        ask(endpoint, tmp_path / "answers.jsonl", retries=0)
    assert not isinstance(error.value, LLMRefusalError)
    assert ask(endpoint, tmp_path / "answers.jsonl", retries=0) == "ok"


@pytest.mark.parametrize(
    "body",
    [
        (200, {"choices": []}),
        completion(None, "content_filter: PROHIBITED_CONTENT"),
        completion("half of an ans", "SAFETY"),
        completion(None, "RECITATION", {"reasoning": "the answer is {}"}),
        completion("", "sensitive"),
        completion(None, "error", error={"code": 403, "metadata": {"flagged_input": "a man"}}),
    ],
)
def test_a_filtered_question_is_refused_and_the_refusal_is_kept(endpoint: Any, tmp_path: Path, body: Any) -> None:
    endpoint.answers = [body]
    for _ in range(2):
        with pytest.raises(LLMRefusalError, match="want a text, got none"):
            ask(endpoint, tmp_path / "answers.jsonl", retries=1)
    assert len(endpoint.requests) == 1


def test_too_many_requests_name_the_settings(endpoint: Any, tmp_path: Path) -> None:
    endpoint.answers = [(429, {"error": "rate limit"})]
    with pytest.raises(
        LLMError, match=r"answered 429 .*; lower instructions.concurrency .*instructions.endpoint: \{retries: \.\.\.\}"
    ):
        ask(endpoint, tmp_path / "answers.jsonl", retries=0)
