"""Holds a chat model to a JSON Schema: a token after which the answer could no longer become such JSON is never drawn."""

from typing import Any

import torch

Schema = dict[str, Any]


class Constraint:
    """A logits processor of transformers for one answer: llguidance says which tokens may follow. Spaces are json.dumps's."""

    def __init__(self, schema: Schema, tokens: Any, prompt_tokens: int) -> None:
        import llguidance

        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        )
        self._matcher = llguidance.LLMatcher(tokens, grammar)
        self._seen = prompt_tokens
        self._check("a JSON Schema that llguidance knows")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [1, V] of the next token after `input_ids` [1, L], -inf where a token is forbidden."""
        self._matcher.consume_tokens(input_ids[0, self._seen :].tolist())
        self._seen = input_ids.shape[1]
        self._check("tokens that the schema allows")
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).to(scores.device)
        return scores.masked_fill(allowed[: scores.shape[1]] == 0, -torch.inf)

    def _check(self, want: str) -> None:
        if self._matcher.is_error():
            raise ValueError(f"want {want}, got: {self._matcher.get_error()}")


def tokens_of(tokenizer: Any, n_vocab: int, ends: int | list[int]) -> Any:
    """What constraints need of a tokenizer, made once: it takes about a second.

    `n_vocab`: rows of the model's head; `ends`: tokens that end an answer. Raises ValueError for a slow tokenizer.
    """
    import llguidance.hf

    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=n_vocab, eos_token=ends)
