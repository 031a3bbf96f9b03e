import sys
import types
from typing import Any

import pytest

from emuedit.models.llm_loading import load_llm
from emuedit.models.openai_llm import EndpointSettings, OpenAILLM

MESSAGES = [{"role": "user", "content": "red circle"}]


class EchoLLM:
    """Answers with the last message."""

    def write(
        self, messages: list[dict[str, str]], *, seed: int, temperature: float = 1, top_p: float = 1, schema: Any = None
    ) -> str:
        return messages[-1]["content"]


def test_every_form_of_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("toys")
    module.echo, module.not_an_llm = EchoLLM, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toys", module)
    assert load_llm("toys:echo").write(MESSAGES, seed=0) == "red circle"
    endpoint = load_llm("https://example.org/v1/#org/model:tag")
    assert isinstance(endpoint, OpenAILLM)
    assert (endpoint.url, endpoint.model) == ("https://example.org/v1/chat/completions", "org/model:tag")
    assert endpoint.settings == EndpointSettings()
    slow = EndpointSettings(timeout_s=300, retries=2)
    endpoint = load_llm("https://example.org/v1#model", endpoint=slow)
    assert isinstance(endpoint, OpenAILLM)
    assert endpoint.settings == slow
    with pytest.raises(ValueError, match="add '#' and the model's name"):
        load_llm("https://example.org/v1")
    with pytest.raises(TypeError, match="must return an object with write"):
        load_llm("toys:not_an_llm")
    with pytest.raises(ValueError, match="importable 'module:factory'"):
        load_llm("toys:absent")
