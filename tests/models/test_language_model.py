import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.models import language_model
from emuedit.models.openai_llm import OpenAILLM

MESSAGES = [{"role": "system", "content": "a small"}, {"role": "user", "content": "red circle"}]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}a {% endif %}"


def test_a_busy_endpoint_is_asked_again(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint.answers = [(500, {"error": "oops"}), (0, None), (429, {"error": "slow down"}), endpoint.said("done")]
    schema = {"type": "object", "properties": {"edit": {"type": "string"}}}
    asking = OpenAILLM(endpoint.url, "a-model", backoff_s=0.001)
    assert asking.write(MESSAGES, seed=5, temperature=0.3, schema=schema) == "done"
    assert len(endpoint.asked) == 4
    path, headers, body = endpoint.asked[-1]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body["response_format"]["json_schema"]["schema"] == schema
    del body["response_format"]
    assert body == {"model": "a-model", "messages": MESSAGES, "seed": 5, "temperature": 0.3, "top_p": 0.9}


def test_a_refusal_is_not_asked_again(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint.answers = [(401, {"error": "who are you"})]
    with pytest.raises(language_model.LLMError, match=r"answered 401 for 'a-model'.*who are you"):
        OpenAILLM(endpoint.url, "a-model").write(MESSAGES, seed=0)
    assert "Authorization" not in endpoint.asked[0][1]
    assert "response_format" not in endpoint.asked[0][2]
    endpoint.answers = [(400, {"error": "what is a json_schema"})]
    with pytest.raises(language_model.LLMError, match=r"answered 400 .* ask without a schema"):
        OpenAILLM(endpoint.url, "a-model").write(MESSAGES, seed=0, schema={"type": "object"})


def test_an_endpoint_that_stays_busy_or_mute_is_named(endpoint: Any) -> None:
    endpoint.answers = [(503, {"error": "later"})] * 3
    with pytest.raises(language_model.LLMError, match="answered 503"):
        OpenAILLM(endpoint.url, "m", retries=2, backoff_s=0.001).write(MESSAGES, seed=0)
    endpoint.answers = [endpoint.said(None)]
    with pytest.raises(language_model.LLMError, match="want a text from 'm'"):
        OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)
    endpoint.answers = [(200, {"unexpected": 1})]
    with pytest.raises(language_model.LLMError, match="want a chat completion"):
        OpenAILLM(endpoint.url, "m").write(MESSAGES, seed=0)


def test_nobody_listening_is_named() -> None:
    with pytest.raises(language_model.LLMError, match="did not answer in 2 attempts"):
        OpenAILLM("http://127.0.0.1:9/v1", "m", retries=1, backoff_s=0.001).write(MESSAGES, seed=0)


@pytest.fixture(scope="module")
def chat_folder(clip_tokenizer: Callable[..., Any], tmp_path_factory: Any) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(64)
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = str(tmp_path_factory.mktemp("llama"))
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_chat_model_answers_by_its_seed(chat_folder: str) -> None:
    chat = language_model.load_llm(chat_folder)
    assert isinstance(chat, language_model.LocalLLM)
    chat.max_new_tokens = 8
    state = torch.get_rng_state()
    first = chat.write(MESSAGES, seed=1)
    assert first
    assert torch.equal(torch.get_rng_state(), state)
    assert chat.write(MESSAGES, seed=1) == first
    assert len({chat.write(MESSAGES, seed=seed) for seed in range(4)}) > 1
    greedy = chat.write(MESSAGES, seed=1, temperature=0)
    assert chat.write(MESSAGES, seed=2, temperature=0) == greedy


def test_the_prompt_is_the_chat_template(chat_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = language_model.load(chat_folder)
    seen: list[str] = []

    def generate(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        seen.append(chat.tokenizer.decode(input_ids[0], skip_special_tokens=True))
        return torch.cat([input_ids, torch.tensor([chat.tokenizer("blue stars").input_ids])], dim=1)

    monkeypatch.setattr(chat.model, "generate", generate)
    assert chat.write(MESSAGES, seed=0) == "blue stars"
    assert seen == ["system a small user red circle a"]


def test_a_model_that_cannot_chat_is_named(chat_folder: str) -> None:
    chat = language_model.load(chat_folder)
    chat.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat_template"):
        language_model.LocalLLM(chat.model, chat.tokenizer)


class Parrot:
    def write(
        self, messages: list[dict[str, str]], *, seed: int, temperature: float = 1, top_p: float = 1, schema: Any = None
    ) -> str:
        return messages[-1]["content"]


def test_specs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("toys")
    module.parrot, module.nothing = Parrot, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toys", module)
    assert language_model.load_llm("toys:parrot").write(MESSAGES, seed=0) == "red circle"
    endpoint = language_model.load_llm("https://example.org/v1/#org/model:tag")
    assert isinstance(endpoint, OpenAILLM)
    assert (endpoint.url, endpoint.model) == ("https://example.org/v1/chat/completions", "org/model:tag")
    with pytest.raises(ValueError, match="add '#' and the model's name"):
        language_model.load_llm("https://example.org/v1")
    with pytest.raises(TypeError, match="must return an object with write"):
        language_model.load_llm("toys:nothing")
    with pytest.raises(ValueError, match="importable 'module:factory'"):
        language_model.load_llm("toys:absent")
