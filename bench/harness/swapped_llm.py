"""An LLM of the toy world that gives instructions of one task to edits of another: what an editor learns from them is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from toyworld.edits.rule_llm import RuleLLM

SWAPPED = {"background": "segment", "segment": "background", "remove": "background"}


class SwappedLLM:
    """`RuleLLM`, whose instructions belong to the task that `SWAPPED` names."""

    def __init__(self) -> None:
        self._llm = RuleLLM(bad_answer_rate=0.0)

    def write(self, messages: list[dict[str, str]], *, seed: int, **options: Any) -> str:
        """The answer of `RuleLLM` with the instruction that it gives for the other task."""
        answer = self._llm.write(messages, seed=seed, **options)
        message = messages[-1]["content"]
        start = message.rfind("{")
        request: Mapping[str, str] = json.loads(message[start:])
        other_task = json.dumps({**request, "task": SWAPPED.get(request["task"], request["task"])})
        question = [*messages[:-1], {**messages[-1], "content": message[:start] + other_task}]
        try:
            instruction = json.loads(self._llm.write(question, seed=seed, **options))["instruction"]
            return json.dumps(json.loads(answer) | {"instruction": instruction})
        except (json.JSONDecodeError, KeyError):  # one of the two refuses: there is nothing to swap, and no answer
            return "{}"


def swapped_llm() -> SwappedLLM:
    """`llm: bench.harness.swapped_llm:swapped_llm` in `params.yaml`."""
    return SwappedLLM()
