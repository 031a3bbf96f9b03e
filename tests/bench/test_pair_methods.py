"""The methods that `bench/pairs.py` compares: Prompt-to-Prompt as in its authors' code, and what is timed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit.data.records import Instruction

Load = Callable[[str], ModuleType]
INSTRUCTION = Instruction(
    caption_id="c", task="local", text="make the star blue", source_caption="a red star", target_caption="a blue star",
    source_object="red star", target_object="blue star", reverse=False, seed=0, llm="", answer="",
)  # fmt: skip


class Recorder:
    """Stands for `Stopwatch`: records which part of the work is measured at present."""

    def __init__(self) -> None:
        self.measured = ""

    @contextmanager
    def measure(self, method: str, round_number: int, part: str) -> Iterator[None]:
        self.measured = part
        yield
        self.measured = ""


@pytest.mark.parametrize(("steps", "cross", "from_source"), [(8, 7, 3), (9, 8, 3), (50, 40, 20)])
def test_prompt_to_prompt_controls_as_many_steps_as_the_authors_code(
    load_script: Load, steps: int, cross: int, from_source: int
) -> None:
    """They give 0.8 of steps + 1 to cross-attention and 0.4 of the steps to self-attention, rounded down."""
    generated: list[Any] = []

    def generate(captions: Any, seeds: Any, scales: Any, edits: Any) -> tuple[torch.Tensor, torch.Tensor]:
        generated.extend(edits)
        return torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)

    setup = SimpleNamespace(
        models=SimpleNamespace(base_model=SimpleNamespace(factor=1, size=(8, 8))), guidance_factor=1.0,
        params=SimpleNamespace(steps=steps, rows_per_batch=4), prompt_to_prompt=SimpleNamespace(generate=generate),
        decode=lambda z: z,
    )  # fmt: skip
    method = load_script("harness.pair_methods").PromptToPromptMethod(blend=True)
    method.generate("prompt_to_prompt", [INSTRUCTION], setup, Recorder())
    (edit,) = generated
    assert (round(edit.cross_fraction * steps), round(edit.self_fraction * steps)) == (cross, from_source)


def test_the_detector_of_every_filter_is_timed(load_script: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    scoring, setup = load_script("harness.pair_scoring"), load_script("harness.pair_setup")
    stopwatch, parts = Recorder(), dict[str, str]()

    def result(name: str, values: list[Any]) -> Callable[..., list[Any]]:
        return lambda *_: (parts.setdefault(name, stopwatch.measured), values)[1]

    filters = SimpleNamespace(filters_for=lambda task: {"object_left_in_mask": {"max": 0.5}})
    scorer = scoring.CandidateScorer(SimpleNamespace(params=SimpleNamespace(rows_per_batch=4)), filters)
    results = {"_clip_direction": [0.3], "_presence": [], "_left_inside": [0.1], "_widest_masks": [torch.zeros(1, 4, 4)]}
    for name, values in results.items():
        monkeypatch.setattr(scoring.CandidateScorer, name, result(name, values))
    monkeypatch.setattr(scoring, "find_faults", lambda pairs, M, passed: [set()] if passed == [True] else [None])
    pair = setup.GeneratedPair(INSTRUCTION, 0, torch.zeros(3, 4, 4), torch.zeros(3, 4, 4))
    (candidate,) = scorer.score("method", 0, [pair], stopwatch)
    assert candidate.right
    assert parts == {"_clip_direction": "filters", "_presence": "filters", "_left_inside": "filters", "_widest_masks": ""}
