"""Constrained decoding: restrict a chat model's answer to JSON that matches a JSON Schema, with llguidance.

At every step, tokens that cannot lead to such JSON get probability 0.
"""

from typing import Any

import torch

Schema = dict[str, Any]


class SchemaConstraint:
    """A logits processor of transformers for one answer. The JSON has the whitespace of `json.dumps`."""

    def __init__(self, schema: Schema, constraint_tokenizer: Any, prompt_tokens: int) -> None:
        """`constraint_tokenizer` is from `build_constraint_tokenizer`; `prompt_tokens` is the number of prompt tokens.

        Raises ValueError for a schema that llguidance does not support.
        """
        import llguidance

        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        )
        self._matcher = llguidance.LLMatcher(constraint_tokenizer, grammar)
        self._n_consumed = prompt_tokens
        self._check("a JSON Schema that llguidance supports")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Set the scores [1, V] of the token after `input_ids` [1, L] to -inf where the schema forbids the token.

        Raises ValueError for `input_ids` that the schema does not allow.
        """
        self._matcher.consume_tokens(input_ids[0, self._n_consumed :].tolist())
        self._n_consumed = input_ids.shape[1]
        self._check("tokens that the schema allows")
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).to(scores.device)
        return scores.masked_fill(allowed[: scores.shape[1]] == 0, -torch.inf)

    def _check(self, want: str) -> None:
        if self._matcher.is_error():
            raise ValueError(f"want {want}, got: {self._matcher.get_error()}")


def build_constraint_tokenizer(tokenizer: Any, n_vocab: int, end_tokens: int | list[int]) -> Any:
    """Build llguidance's form of a tokenizer. It takes about a second, so build it once per tokenizer.

    `n_vocab`: rows of the model's output layer; `end_tokens`: ids that end an answer.
    Raises ValueError for a slow tokenizer.
    """
    import llguidance.hf

    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=n_vocab, eos_token=end_tokens)
