import errno
import os
import ssl
import time
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import Any

import pytest

from emuedit.failures import FailureKind, kind_of
from emuedit.models.language_model import CutAnswerError, LLMError, LLMRefusalError
from emuedit.models.openai_llm import EndpointSettings, OpenAILLM

MESSAGES = [{"role": "system", "content": "a small"}, {"role": "user", "content": "red circle"}]


def test_a_busy_endpoint_is_retried(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint.answers = [(500, {"error": "oops"}), (0, None), (429, {"error": "slow down"}), endpoint.chat_response("done")]
    schema = {"type": "object", "properties": {"edit": {"type": "string"}}}
    llm = OpenAILLM(endpoint.url, "a-model", backoff_s=0.001)
    assert llm.write(MESSAGES, seed=5, temperature=0.3, schema=schema) == "done"
    assert len(endpoint.requests) == 4
    path, headers, body = endpoint.requests[-1]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body["response_format"]["json_schema"]["schema"] == schema
    del body["response_format"]
    sampling = {"seed": 5, "temperature": 0.3, "top_p": 0.9}
    assert body == {"model": "a-model", "messages": MESSAGES, "max_tokens": 1024} | sampling


def test_half_of_a_character_is_replaced(endpoint: Any) -> None:
    endpoint.answers = [endpoint.chat_response("smile \ud83d")]
    assert OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0) == "smile ?"


def test_a_client_error_is_not_retried(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint.answers = [(401, {"error": "who are you"})]
    with pytest.raises(LLMError, match=r"answered 401 for 'a-model'.*who are you") as error:
        OpenAILLM(endpoint.url, "a-model").write(MESSAGES, seed=0)
    assert kind_of(error.value) is FailureKind.OTHER
    assert "Authorization" not in endpoint.requests[0][1]
    assert "response_format" not in endpoint.requests[0][2]
    endpoint.answers = [(400, {"error": "what is a json_schema"})]
    hint = r"constrained_decoding: false, temperature: null, top_p: null, endpoint: \{send_seed: false\}, "
    hint += r"endpoint: \{max_tokens: null\}$"
    with pytest.raises(LLMError, match=r"answered 400 .*section instructions: " + hint):
        OpenAILLM(endpoint.url, "a-model").write(MESSAGES, seed=0, schema={"type": "object"})
    assert len(endpoint.requests) == 2


def test_fields_that_an_endpoint_does_not_take_are_left_out(endpoint: Any) -> None:
    endpoint.answers = [endpoint.chat_response("done"), endpoint.chat_response("done")]
    llm = OpenAILLM(endpoint.url, "a-model", EndpointSettings(send_seed=False, max_tokens=None))
    llm.write(MESSAGES, seed=5, temperature=None, top_p=None)
    assert endpoint.requests[-1][2] == {"model": "a-model", "messages": MESSAGES}
    OpenAILLM(endpoint.url, "a-model").write(MESSAGES, seed=2**62 + 2**31 + 7, temperature=0.0, top_p=None)
    fields = {"seed": 7, "temperature": 0.0, "max_tokens": 1024}
    assert endpoint.requests[-1][2] == {"model": "a-model", "messages": MESSAGES} | fields


def seeds_of(endpoint: Any) -> list[int]:
    return [body["seed"] for _, _, body in endpoint.requests]


@pytest.mark.slow
def test_a_question_that_timed_out_is_asked_with_another_seed(endpoint: Any) -> None:
    """With the same one, the answer would run on as long again, six times and in every later run."""

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if len(endpoint.requests) % 3 != 0:
            time.sleep(0.6)
        return endpoint.chat_response("done")

    endpoint.answer = answer
    llm = OpenAILLM(endpoint.url, "m", EndpointSettings(timeout_s=0.3), backoff_s=0.001)
    assert llm.write(MESSAGES, seed=5) == "done"
    first = seeds_of(endpoint)
    assert first[0] == 5
    assert len(set(first)) == 3
    assert all(0 <= seed < 2**31 for seed in first)
    assert llm.write(MESSAGES, seed=5) == "done"
    assert seeds_of(endpoint) == first * 2, "the same question has the same seeds in every run"
    assert llm.write(MESSAGES, seed=6) == "done"
    assert not set(seeds_of(endpoint)[6:]) & set(first)


@pytest.mark.parametrize(
    ("status", "n_seeds"), [(504, 2), (408, 2), (522, 2), (524, 2), (503, 1), (520, 1), (529, 1), (425, 1), (0, 1)]
)
def test_only_a_timeout_changes_the_seed(endpoint: Any, status: int, n_seeds: int) -> None:
    endpoint.answers = [(status, {}), endpoint.chat_response("done")]
    OpenAILLM(endpoint.url, "m", backoff_s=0.001).write(MESSAGES, seed=5)
    assert len(seeds_of(endpoint)) == 2
    assert len(set(seeds_of(endpoint))) == n_seeds


OTHER_NAME = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."


def test_a_model_that_takes_the_limit_under_its_other_name_gets_it(endpoint: Any) -> None:
    refusal = (400, {"error": {"message": OTHER_NAME, "code": "unsupported_parameter", "param": "max_tokens"}})
    endpoint.answers = [refusal, endpoint.chat_response("one"), endpoint.chat_response("two")]
    llm = OpenAILLM(endpoint.url, "m", EndpointSettings(retries=0, max_tokens=300))
    assert [llm.write(MESSAGES, seed=seed) for seed in (1, 2)] == ["one", "two"]
    fields = [{name: body[name] for name in body if "tokens" in name} for _, _, body in endpoint.requests]
    assert fields == [{"max_tokens": 300}, {"max_completion_tokens": 300}, {"max_completion_tokens": 300}]
    endpoint.answers = [refusal]
    with pytest.raises(LLMError, match=r"answered 400 .*endpoint: \{max_tokens: null\}$"):
        llm.write(MESSAGES, seed=3)


def test_an_answer_without_a_text_for_want_of_tokens_names_the_setting(endpoint: Any) -> None:
    endpoint.answers = [completion(message={"content": None}, finish_reason="length")]
    with pytest.raises(LLMError, match=r"ran out of tokens before it; set instructions.endpoint: \{max_tokens"):
        OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)


def test_a_text_that_was_cut_is_an_error_with_the_text_and_the_setting(endpoint: Any) -> None:
    endpoint.answers = [completion(message={"content": "half \ud83d"}, finish_reason="length")]
    with pytest.raises(CutAnswerError, match=r"one that was cut: .*; set instructions.endpoint: \{max_tokens") as error:
        OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)
    assert error.value.text == "half ?"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "System role not supported"),
        (400, "Conversation roles must alternate user/assistant/user/assistant/..."),
        (500, "jinja: System role not supported"),
    ],
)
def test_the_system_text_goes_to_the_user_where_the_model_has_no_system_role(endpoint: Any, status: int, message: str) -> None:
    refusal = (status, {"error": {"message": message}})
    endpoint.answers = [refusal, endpoint.chat_response("done"), endpoint.chat_response("done")]
    llm = OpenAILLM(endpoint.url, "m", EndpointSettings(retries=0))
    for seed in range(2):
        assert llm.write(MESSAGES, seed=seed) == "done"
    merged = [{"role": "user", "content": "a small\n\nred circle"}]
    assert [body["messages"] for _, _, body in endpoint.requests] == [MESSAGES, merged, merged]
    endpoint.answers = [refusal]
    with pytest.raises(LLMError, match=f"answered {status}"):
        llm.write(MESSAGES, seed=3)


@pytest.mark.parametrize("key", ["k\n", " k\r\n"])
def test_white_space_around_the_api_key_is_removed(endpoint: Any, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    endpoint.answers = [endpoint.chat_response("done")]
    assert OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0) == "done"
    assert endpoint.requests[0][1]["Authorization"] == "Bearer k"


@pytest.mark.parametrize("key", ["a\nb", "a b", "ключ", "a\x00b"])
def test_an_api_key_that_is_no_header_is_an_error_that_does_not_print_it(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(os, "environ", os.environ | {"OPENAI_API_KEY": key})  # the system takes no key with a zero byte
    with pytest.raises(LLMError, match="want an API key of visible ASCII characters in OPENAI_API_KEY") as error:
        OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)
    assert key not in str(error.value)
    assert not endpoint.requests


@pytest.mark.parametrize(
    "failure",
    [
        ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] decryption failed or bad record mac"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        ConnectionResetError("reset"),
    ],
)
def test_an_error_while_an_answer_is_read_is_retried(endpoint: Any, monkeypatch: pytest.MonkeyPatch, failure: OSError) -> None:
    read, failures = HTTPResponse.read, [failure]

    def read_or_fail(response: HTTPResponse, *arguments: Any) -> bytes:
        if failures:
            raise failures.pop()
        return read(response, *arguments)

    monkeypatch.setattr(HTTPResponse, "read", read_or_fail)
    endpoint.answers = [endpoint.chat_response("lost"), endpoint.chat_response("done")]
    assert OpenAILLM(endpoint.url, "m", backoff_s=0.001).write(MESSAGES, seed=0) == "done"
    failures.append(failure)
    endpoint.answers = [endpoint.chat_response("lost")]
    with pytest.raises(LLMError, match="did not answer in 1 attempts"):
        OpenAILLM(endpoint.url, "m", EndpointSettings(retries=0)).write(MESSAGES, seed=0)


def test_an_endpoint_that_stays_busy_or_gives_no_text_is_an_error(endpoint: Any) -> None:
    endpoint.answers = [(503, {"error": "later"})] * 3
    with pytest.raises(LLMError, match="answered 503") as error:
        OpenAILLM(endpoint.url, "m", EndpointSettings(retries=2), backoff_s=0.001).write(MESSAGES, seed=0)
    assert kind_of(error.value) is FailureKind.NETWORK, "the stage is tried again later"
    assert len(endpoint.requests) == 3
    for body in ({"unexpected": 1}, {"choices": [{"message": {"content": ["parts"]}}]}, ["no", "object"]):
        endpoint.answers = [(200, body)] * 2
        with pytest.raises(LLMError, match=r"did not answer in 2 attempts: want a .*chat completion, got") as error:
            OpenAILLM(endpoint.url, "m", EndpointSettings(retries=1), backoff_s=0.001).write(MESSAGES, seed=0)
        assert not isinstance(error.value, LLMRefusalError)


def completion(**choice: Any) -> tuple[int, Any]:
    return 200, {"choices": [choice]}


AZURE = {"error": {"code": "content_filter", "param": "prompt", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}
INVALID_PROMPT = {
    "code": "invalid_prompt",
    "message": "your prompt was flagged as potentially violating our usage policy",
}

OPENROUTER = {"code": 403, "message": "Your chosen model requires moderation and your input was flagged"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, AZURE), "content filter of .*ResponsibleAIPolicyViolation"),
        ((400, {"error": INVALID_PROMPT}), "content filter of .*was flagged"),
        ((403, {"error": OPENROUTER}), "content filter of .*was flagged"),
        (completion(message={"content": None, "refusal": "I will not"}, finish_reason="stop"), "refusal 'I will not'"),
        (completion(message={"content": None}, finish_reason="content_filter"), "finish_reason 'content_filter'"),
        (completion(message={"content": "half of an ans"}, finish_reason="content_filter"), "finish_reason 'content_filter'"),
        (completion(message={"role": "assistant"}, finish_reason="SAFETY"), "finish_reason 'SAFETY'"),
        ((200, {"choices": []}), "want a text, got none"),
    ],
)
def test_a_refused_question_is_told_from_an_endpoint_that_does_not_answer(endpoint: Any, answer: Any, message: str) -> None:
    endpoint.answers = [answer]
    with pytest.raises(LLMRefusalError, match=message):
        OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)
    assert len(endpoint.requests) == 1


def test_a_prompt_that_is_malformed_is_not_refused(endpoint: Any) -> None:
    endpoint.answers = [(400, {"error": {"code": "invalid_prompt", "message": "the schema has no type"}})]
    with pytest.raises(LLMError, match="answered 400") as error:
        OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)
    assert not isinstance(error.value, LLMRefusalError)


def test_questions_that_fail_together_wait_for_different_times(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)

    def waits_of(seed: int, status: int) -> list[float]:
        waits.clear()
        endpoint.answers = [(status, {})] * 3 + [endpoint.chat_response("done")]
        OpenAILLM(endpoint.url, "m", backoff_s=10.0).write(MESSAGES, seed=seed)
        return list(waits)

    first = waits_of(1, 503)
    assert first == waits_of(1, 503), "the same question waits as long in every run"
    assert first != waits_of(2, 503)
    assert len(first) == 3
    assert all(0 <= wait <= 10 * 2**n for n, wait in enumerate(first))
    endpoint.retry_after = "50"
    assert all(50 <= wait <= 60 for wait in waits_of(1, 429))


def test_the_time_limit_of_a_request_is_that_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def refuse(opener: Any, request: Any, timeout: float) -> None:
        limits.append(timeout)
        raise TimeoutError("too slow")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    with pytest.raises(
        LLMError, match=r"in 1 attempts: too slow; if it needs more than 300 s, set .*endpoint: \{timeout_s: \.\.\.\}"
    ):
        OpenAILLM("http://host/v1", "m", EndpointSettings(timeout_s=300, retries=0)).write(MESSAGES, seed=0)
    assert limits == [300]


@pytest.mark.parametrize("failure", [ConnectionResetError("reset"), TimeoutError("timed out"), HTTPException("cut short")])
def test_a_body_of_an_error_that_does_not_come_is_not_an_error_of_its_own(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def read(self: Any, size: int) -> bytes:
        raise failure

    monkeypatch.setattr("urllib.error.HTTPError.read", read, raising=False)
    endpoint.answers = [(500, {}), endpoint.chat_response("done")]
    assert OpenAILLM(endpoint.url, "m", backoff_s=0.001).write(MESSAGES, seed=0) == "done"
    endpoint.answers = [(401, {})]
    with pytest.raises(LLMError, match=rf"answered 401 .*\(no body: {failure}\)"):
        OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)


def test_an_endpoint_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(LLMError, match="did not answer in 2 attempts") as error:
        OpenAILLM("http://127.0.0.1:9/v1", "m", EndpointSettings(retries=1), backoff_s=0.001).write(MESSAGES, seed=0)
    assert kind_of(error.value) is FailureKind.NETWORK
