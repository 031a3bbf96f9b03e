from pathlib import Path

import pytest

from emuedit.models.answer_cache import CachingLLM
from emuedit.models.language_model import CutAnswerError, LLMError, LLMRefusalError, Message

MESSAGES = [{"role": "user", "content": "red circle"}]


class CountingLLM:
    """Answers with the seed, refuses seed 1, fails at seed 2 and is cut at seed 3; it records the seeds."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def write(
        self,
        messages: list[Message],
        *,
        seed: int,
        temperature: float | None = 0.9,
        top_p: float | None = 0.9,
        schema: object = None,
    ) -> str:
        self.seeds.append(seed)
        if seed == 1:
            raise LLMRefusalError("not this one")
        if seed == 2:
            raise LLMError("out of reach")
        if seed == 3:
            raise CutAnswerError("cut", "answ")
        return f"answer\n{seed}, \u2028 \ud83d"


def ask(llm: CachingLLM, seed: int) -> str:
    try:
        return llm.write(MESSAGES, seed=seed)
    except LLMError as error:
        return repr(error)


def test_an_answer_or_a_refusal_is_not_asked_for_again_and_a_failure_is(tmp_path: Path) -> None:
    first, second = CountingLLM(), CountingLLM()
    answers = [ask(CachingLLM(first, tmp_path / "answers.jsonl"), seed) for seed in (0, 1, 2, 3, 2**62)]
    reopened = CachingLLM(second, tmp_path / "answers.jsonl")
    assert [ask(reopened, seed) for seed in (0, 1, 2, 3, 2**62)] == answers
    assert answers[1] == "LLMRefusalError('not this one')"
    assert first.seeds == [0, 1, 2, 3, 2**62]
    assert second.seeds == [2, 3]


@pytest.mark.parametrize("n_lost", [1, 5, 20])
def test_a_line_that_was_cut_short_is_asked_again_and_does_not_spoil_the_next(tmp_path: Path, n_lost: int) -> None:
    path = tmp_path / "answers.jsonl"
    llm = CachingLLM(CountingLLM(), path)
    for seed in (4, 5):
        ask(llm, seed)
    path.write_bytes(path.read_bytes()[:-n_lost])
    after_kill, later = CountingLLM(), CountingLLM()
    llm = CachingLLM(after_kill, path)
    for seed in (4, 5, 6):
        ask(llm, seed)
    assert after_kill.seeds == [5, 6]
    llm = CachingLLM(later, path)
    for seed in (4, 5, 6):
        ask(llm, seed)
    assert later.seeds == []


def test_another_conversation_sampling_or_schema_is_another_question(tmp_path: Path) -> None:
    counting = CountingLLM()
    llm = CachingLLM(counting, tmp_path / "answers.jsonl")
    other = [{"role": "user", "content": "blue circle"}]
    for _ in range(2):
        llm.write(MESSAGES, seed=7)
        llm.write(other, seed=7)
        llm.write(MESSAGES, seed=7, temperature=None)
        llm.write(MESSAGES, seed=7, schema={"type": "object"})
    assert counting.seeds == [7] * 4
