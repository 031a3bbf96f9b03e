"""A chat model on this machine, through transformers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from emuedit.models import model_sources
from emuedit.models.language_model import TEMPERATURE, TOP_P, LLMError, Message, merge_system_message

if TYPE_CHECKING:
    import torch

    from emuedit.models.constrained_decoding import Schema


class LocalLLM:
    """Any causal language model of transformers whose tokenizer has a chat template, with or without a system role."""

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int = 512) -> None:
        if not tokenizer.chat_template:
            raise ValueError("want a chat model whose tokenizer has a chat_template, got one without; use an -it model")
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self._has_system_role = True

    def write(
        self,
        messages: list[Message],
        *,
        seed: int,
        temperature: float | None = TEMPERATURE,
        top_p: float | None = TOP_P,
        schema: Schema | None = None,
    ) -> str:
        """See `LLM.write`. The global random state is restored. An answer is cut after `max_new_tokens`, JSON too.

        Raises LLMError for messages that the chat template does not take.
        """
        import torch

        inputs = self._encode(messages).to(self.model.device)
        prompt_tokens = inputs["input_ids"].shape[1]
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature is None or temperature > 0:
            settings = {"temperature": temperature, "top_p": top_p, "top_k": 0}
            sampling = {"do_sample": True} | {name: value for name, value in settings.items() if value is not None}
        if schema is not None:
            sampling["logits_processor"] = self._schema_processors(schema, prompt_tokens)
        device = self.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            out = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, pad_token_id=self._pad_token_id(), **sampling)
        text: str = self.tokenizer.decode(out[0, prompt_tokens:], skip_special_tokens=True)
        return text.strip()

    def _encode(self, messages: list[Message]) -> Any:
        """The tokens of a conversation; from the first template error on, the system text is part of the user's message."""
        from jinja2 import TemplateError

        def apply(conversation: list[Message]) -> Any:
            return self.tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )

        if self._has_system_role:
            try:
                return apply(messages)
            except TemplateError:
                pass
        try:
            inputs = apply(merge_system_message(messages))
        except TemplateError as error:
            raise LLMError(
                "want a chat template that takes messages of the user and the assistant in turn, got an error of the template: "
                f"{error}; use another chat model"
            ) from error
        self._has_system_role = False
        return inputs

    def _schema_processors(self, schema: Schema, prompt_tokens: int) -> list[Any]:
        from emuedit.models.constrained_decoding import SchemaConstraint

        constraint = SchemaConstraint(schema, self._constraint_tokenizer, prompt_tokens)
        return model_sources.import_library("transformers").LogitsProcessorList([constraint])

    @cached_property
    def _constraint_tokenizer(self) -> Any:
        from emuedit.models.constrained_decoding import build_constraint_tokenizer

        end_tokens = self.model.generation_config.eos_token_id
        if end_tokens is None:
            end_tokens = self.tokenizer.eos_token_id
        n_vocab = self.model.config.get_text_config().vocab_size  # of a model that also reads images, such as Gemma 3
        return build_constraint_tokenizer(self.tokenizer, n_vocab, end_tokens)

    def _pad_token_id(self) -> Any:
        return self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id


def load(name_or_path: str, device: str = "cpu", dtype: torch.dtype | None = None) -> LocalLLM:
    """Load a chat model from a transformers folder or a hub id; dtype None is float32."""
    import torch

    model_sources.read_manifest(name_or_path, model_sources.CHAT)
    classes = ("AutoModelForCausalLM", "AutoTokenizer")
    return LocalLLM(*model_sources.load_frozen(name_or_path, *classes, device, dtype or torch.float32))
