"""What `OpenAILLM` sends, where it sends it, and what it says about an address that is not that of a chat endpoint."""

import json
from pathlib import Path
from typing import Any

import pytest

from emuedit.failures import FailureKind, kind_of
from emuedit.models.answer_cache import CachingLLM
from emuedit.models.language_model import LLMError
from emuedit.models.openai_llm import EndpointSettings, OpenAILLM
from emuedit.prompts.answer_schema import answer_schema
from emuedit.tasks import TASKS

MESSAGES = [{"role": "user", "content": "red circle"}]


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_a_schema_is_sent_without_patterns_and_its_answer_is_kept_under_the_full_one(
    endpoint: Any, tmp_path: Path, task: str
) -> None:
    """llama.cpp and Ollama know no `\\S`, and some endpoints no pattern at all: they refused every question."""
    full = answer_schema(task)
    llm = CachingLLM(OpenAILLM(endpoint.url, "m"), tmp_path / "answers.jsonl")
    endpoint.answers = [endpoint.chat_response("first"), endpoint.chat_response("second")]
    assert llm.write(MESSAGES, seed=1, schema=full) == "first"
    sent = endpoint.requests[0][2]["response_format"]["json_schema"]["schema"]
    assert "pattern" in json.dumps(full)
    assert "pattern" not in json.dumps(sent)
    assert '""' not in json.dumps(sent), "Gemini refuses an enum with an empty text"
    assert sent["required"] == full["required"]
    assert llm.write(MESSAGES, seed=1, schema=sent) == "second", "the first answer was not kept under the schema that was sent"
    assert llm.write(MESSAGES, seed=1, schema=full) == "first"


def test_only_the_keyword_pattern_is_left_out_of_a_schema(endpoint: Any) -> None:
    endpoint.answers = [endpoint.chat_response("done")]
    text = {"type": "string", "pattern": "^a$"}
    schema: dict[str, Any] = {"properties": {"pattern": text, "texts": {"items": text, "anyOf": [text]}}, "required": ["pattern"]}
    OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=1, schema=schema)
    text = {"type": "string"}
    without = {"properties": {"pattern": text, "texts": {"items": text, "anyOf": [text]}}, "required": ["pattern"]}
    assert endpoint.requests[0][2]["response_format"]["json_schema"]["schema"] == without
    assert schema["properties"]["pattern"] == text | {"pattern": "^a$"}, "the schema of the caller is not changed"


def test_a_schema_that_makes_the_server_fail_names_the_setting(endpoint: Any) -> None:
    endpoint.answers = [(500, {"error": "failed to parse grammar"})]
    with pytest.raises(LLMError, match=r"answered 500 .*section instructions: constrained_decoding: false"):
        OpenAILLM(endpoint.url, "m", EndpointSettings(retries=0)).write(MESSAGES, seed=0, schema={"type": "object"})


def test_requests_name_the_project_as_their_agent(endpoint: Any) -> None:
    """Cloudflare answers 403 to the agent of urllib."""
    endpoint.answers = [endpoint.chat_response("done")]
    OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)
    assert endpoint.requests[0][1]["User-Agent"] == "emuedit"


@pytest.mark.parametrize("location", ["{url}/elsewhere", "/v1/elsewhere"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_its_address_is_named(endpoint: Any, status: int, location: str) -> None:
    endpoint.location = location.format(url=endpoint.url)
    endpoint.answers = [(status, {})]
    message = rf"answered {status} .*; it redirects to {endpoint.url}/elsewhere; use that address in world.llm"
    with pytest.raises(LLMError, match=message) as error:
        OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)
    assert kind_of(error.value) is FailureKind.OTHER
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://host/v1", "https://host/v1/chat/completions"),
        ("https://host/v1//", "https://host/v1/chat/completions"),
        ("https://host", "https://host/chat/completions"),
        ("https://host/v1/chat/completions/", "https://host/v1/chat/completions"),
        ("https://host/d?api-version=2024-10-21", "https://host/d/chat/completions?api-version=2024-10-21"),
        ("https://host/d/chat/completions?a=b", "https://host/d/chat/completions?a=b"),
    ],
)
def test_the_path_is_added_once_and_before_the_query(base_url: str, url: str) -> None:
    assert OpenAILLM(base_url, "m").url == url


def test_an_address_or_a_model_that_is_not_there_names_both(endpoint: Any) -> None:
    endpoint.answers = [(404, {"detail": "Not Found"})]
    with pytest.raises(
        LLMError, match=r"answered 404 .*Not Found.*does the address in world.llm .* end in /v1, and is the model"
    ):
        OpenAILLM(endpoint.url.removesuffix("/v1"), "m").write(MESSAGES, seed=0)
    assert endpoint.requests[0][0] == "/chat/completions"
