"""A toy LLM that swaps instructions between tasks, so that an editor is trained on wrong instructions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from toyworld.edits.rule_llm import RuleLLM

SWAPPED = {"background": "segment", "segment": "background", "remove": "background"}


class SwappedLLM:
    """`RuleLLM` with instructions of the task in `SWAPPED`."""

    def __init__(self) -> None:
        self._llm = RuleLLM(bad_answer_rate=0.0)

    def write(self, messages: list[dict[str, str]], *, seed: int, **options: Any) -> str:
        """The answer of `RuleLLM` with its instruction for the other task."""
        answer = self._llm.write(messages, seed=seed, **options)
        message = messages[-1]["content"]
        start = message.rfind("{")
        request: Mapping[str, str] = json.loads(message[start:])
        other_task = json.dumps({**request, "task": SWAPPED.get(request["task"], request["task"])})
        question = [*messages[:-1], {**messages[-1], "content": message[:start] + other_task}]
        try:
            instruction = json.loads(self._llm.write(question, seed=seed, **options))["instruction"]
            return json.dumps(json.loads(answer) | {"instruction": instruction})
        except (json.JSONDecodeError, KeyError):  # one of the two refused: there is nothing to swap
            return "{}"


def swapped_llm() -> SwappedLLM:
    """Factory for `llm: bench.harness.swapped_llm:swapped_llm` in `params.yaml`."""
    return SwappedLLM()
