from typing import Any

import pytest

from emuedit.failures import FailureKind, kind_of
from emuedit.models.language_model import LLMError
from emuedit.models.openai_llm import OpenAILLM

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
    assert body == {"model": "a-model", "messages": MESSAGES, "seed": 5, "temperature": 0.3, "top_p": 0.9}


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
    with pytest.raises(LLMError, match=r"answered 400 .* ask without a schema"):
        OpenAILLM(endpoint.url, "a-model").write(MESSAGES, seed=0, schema={"type": "object"})


def test_an_endpoint_that_stays_busy_or_gives_no_text_is_an_error(endpoint: Any) -> None:
    endpoint.answers = [(503, {"error": "later"})] * 3
    with pytest.raises(LLMError, match="answered 503") as error:
        OpenAILLM(endpoint.url, "m", retries=2, backoff_s=0.001).write(MESSAGES, seed=0)
    assert kind_of(error.value) is FailureKind.NETWORK, "the stage is tried again later"
    endpoint.answers = [endpoint.chat_response(None)]
    with pytest.raises(LLMError, match="want a text from 'm'"):
        OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)
    endpoint.answers = [(200, {"unexpected": 1})]
    with pytest.raises(LLMError, match="want a chat completion"):
        OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)


def test_an_endpoint_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(LLMError, match="did not answer in 2 attempts") as error:
        OpenAILLM("http://127.0.0.1:9/v1", "m", retries=1, backoff_s=0.001).write(MESSAGES, seed=0)
    assert kind_of(error.value) is FailureKind.NETWORK
