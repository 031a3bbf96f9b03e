"""The llm: chat messages in, one text out. An OpenAI-compatible endpoint, a local chat model, or any factory.

Messages are the usual [{"role": "system" | "user" | "assistant", "content": "..."}].
Emu Edit samples at temperature 0.9 and top-p 0.9 (arXiv 2311.10089); these are the defaults.
"""

from __future__ import annotations

import importlib
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from emuedit.models import model_sources

if TYPE_CHECKING:
    import torch

    from emuedit.models.constrained_decoding import Schema

Message = dict[str, str]
TEMPERATURE, TOP_P = 0.9, 0.9

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class LLMError(RuntimeError):
    """The llm gave no text, and asking again would not help."""


@runtime_checkable
class LLM(Protocol):
    """Whatever turns messages into text. The same messages and seed give the same text, as far as the llm can."""

    def write(
        self,
        messages: list[Message],
        *,
        seed: int,
        temperature: float = TEMPERATURE,
        top_p: float = TOP_P,
        schema: Schema | None = None,
    ) -> str:
        """The answer to these messages; JSON of a JSON Schema where one is given and the llm can be held to it."""
        ...


class LocalLLM:
    """A chat model on this machine (any transformers causal model whose tokenizer has a chat template)."""

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int = 512) -> None:
        if not tokenizer.chat_template:
            raise ValueError("want a chat model whose tokenizer has a chat_template, got one without; use an -it model")
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens

    def write(
        self,
        messages: list[Message],
        *,
        seed: int,
        temperature: float = TEMPERATURE,
        top_p: float = TOP_P,
        schema: Schema | None = None,
    ) -> str:
        """The model's answer. Temperature 0 is greedy; the global random state is left as it was.

        With `schema` it is JSON of that schema, unless it takes more than `max_new_tokens`.
        """
        import torch

        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if schema is not None:
            sampling["logits_processor"] = self._held(schema, inputs["input_ids"].shape[1])
        device = self.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            out = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, pad_token_id=self._pad(), **sampling)
        text: str = self.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text.strip()

    def _held(self, schema: Schema, prompt_tokens: int) -> list[Any]:
        from emuedit.models.constrained_decoding import Constraint

        return model_sources.library("transformers").LogitsProcessorList([Constraint(schema, self._tokens, prompt_tokens)])

    @cached_property
    def _tokens(self) -> Any:
        from emuedit.models.constrained_decoding import tokens_of

        ends = self.model.generation_config.eos_token_id
        return tokens_of(self.tokenizer, self.model.config.vocab_size, self.tokenizer.eos_token_id if ends is None else ends)

    def _pad(self) -> Any:
        return self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id


def load(name_or_path: str, device: str = "cpu", dtype: torch.dtype | None = None, revision: str | None = None) -> LocalLLM:
    """A chat model from a transformers folder or a hub id; dtype None is float32."""
    import torch

    model_sources.manifest(name_or_path, model_sources.CHAT, revision)
    transformers = model_sources.library("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        name_or_path, revision=revision, dtype=dtype or torch.float32, use_safetensors=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(name_or_path, revision=revision)
    return LocalLLM(model.to(device).requires_grad_(False).eval(), tokenizer)


def load_llm(spec: str, device: str = "cpu", dtype: torch.dtype | None = None, revision: str | None = None) -> LLM:
    """A llm from 'https://host/v1#model' (OpenAI-compatible), 'package.module:factory', a folder or a hub id."""
    if spec.startswith(("http://", "https://")):
        from emuedit.models.openai_llm import OpenAILLM

        url, _, model = spec.partition("#")
        if not model:
            raise ValueError(f"want 'https://host/v1#model', got {spec!r}; add '#' and the model's name")
        return OpenAILLM(url, model)
    if FACTORY.fullmatch(spec):
        return _made(spec)
    return load(spec, device, dtype, revision)


def _made(spec: str) -> LLM:
    module, _, factory = spec.partition(":")
    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"want an importable 'module:factory', got {spec!r}: {error}") from error
    made = make()
    if not isinstance(made, LLM):
        got = type(made).__name__
        raise TypeError(f"{spec} must return an object with write(messages, *, seed, temperature, top_p, schema), got {got}")
    return made
