import json
import threading
from pathlib import Path
from typing import Any

import pytest

from emuedit.config import load
from emuedit.data.publish import publish, read_folder, read_summary, scratch_folder
from emuedit.data.records import Caption, Drop, Instruction
from emuedit.data.shards import write_shard
from emuedit.models.language_model import LLMError
from emuedit.models.openai_llm import OpenAILLM
from emuedit.prompts import conversation
from emuedit.prompts.answer_schema import answer_schema
from emuedit.stages import instructions
from emuedit.stages.instructions import InstructionsError, Params, run
from emuedit.tasks import TASKS

ROOT = Path(__file__).parents[2]
AGENTS = ROOT / "emuedit" / "prompts"
GOOD = {
    "instruction": "remove the dog", "original_object": "dog", "edited_object": "", "output_caption": "an empty sofa",
}  # fmt: skip


def knobs(**changes: Any) -> Params:
    params = load(Params, "instructions", ROOT / "params.yaml")
    where = {"agents": str(AGENTS), "moderation": str(AGENTS / "moderation.txt")}
    small = {
        "tasks": ("remove", "add", "sketch"),
        "n_captions": 6,
        "captions_per_shard": 2,
        "concurrency": 1,
        "max_repeat_share": 1.0,
    }
    return params.model_copy(update=where | small | changes)


def captions(root: Path, *texts: str) -> list[Caption]:
    some = [Caption(text, "c.txt", i) for i, text in enumerate(texts or [f"a dog on sofa {'i' * n}" for n in range(6)])]
    scratch = scratch_folder(root, "captions", "f")
    write_shard(scratch / "shard-00000.parquet", some, Caption)
    publish(scratch, root / instructions.IN, "captions", {}, {})
    return some


class Scripted:
    """A llm of good answers, or of what `say` makes of the question; keeps every conversation."""

    def __init__(self, say: Any = None) -> None:
        self.say, self.heard, self.held_to, self.lock = say, [], [], threading.Lock()  # type: ignore[var-annotated]

    def write(
        self, messages: list[dict[str, str]], *, seed: int, temperature: float = 0.9, top_p: float = 0.9, schema: Any = None
    ) -> str:
        asked = json.loads(messages[-1]["content"].splitlines()[-1])
        with self.lock:
            self.heard.append((asked, messages, seed, temperature, top_p))
            self.held_to.append(schema)
        answer = GOOD | {
            "instruction": f"{asked['task']} it, version {seed % 97}", "edited_object": "cat", "output_caption": f"new {seed}",
        }  # fmt: skip
        said = self.say(asked, messages, json.dumps(answer)) if self.say else json.dumps(answer)
        if isinstance(said, Exception):
            raise said
        return str(said)


@pytest.fixture
def hire(monkeypatch: pytest.MonkeyPatch) -> Any:
    def hired(say: Any = None) -> Scripted:
        llm = Scripted(say)
        monkeypatch.setattr(instructions, "load_llm", lambda *spec: llm)
        return llm

    return hired


def test_every_task_is_asked_once_for_every_caption(tmp_path: Path, hire: Any) -> None:
    some, llm = captions(tmp_path), hire()
    summary = run(knobs(), tmp_path)
    found = list(read_folder(tmp_path / instructions.OUT, Instruction, verify=True))
    assert [(one.caption_id, one.task) for one in found] == [(c.id, t) for c in some for t in ("remove", "add", "sketch")]
    assert len({seed for *_, seed, _, _ in llm.heard}) == len(llm.heard) == 18
    assert {(temperature, top_p) for *_, temperature, top_p in llm.heard} == {(0.9, 0.9)}
    by_task = {task: [one for one in found if one.task == task] for task in ("remove", "add", "sketch")}
    text = {one.id: one.text for one in some}
    for one in by_task["remove"]:
        assert (one.reverse, one.source_caption, one.source_object, one.target_object) == (
            False,
            text[one.caption_id],
            "dog",
            None,
        )
    for one in by_task["add"]:
        assert (one.reverse, one.source_caption, one.source_object, one.target_object) == (
            True,
            text[one.caption_id],
            None,
            "cat",
        )
    for one in by_task["sketch"]:
        assert (one.source_object, one.target_object) == (None, None)
        assert (one.target_caption if one.reverse else one.source_caption) == text[one.caption_id]
    ways = {asked["caption"]: asked["direction"] for asked, *_ in llm.heard if asked["task"] == "sketch"}
    assert set(ways.values()) == {"to_map", "from_map"}
    assert all((ways[text[one.caption_id]] == "from_map") == one.reverse for one in by_task["sketch"])
    assert summary.counts == {"kept": 18, "kept_remove": 6, "kept_add": 6, "kept_sketch": 6}
    figures = json.loads((tmp_path / instructions.OUT / "diversity.json").read_text())
    assert figures["remove"]["instructions"] == 6
    assert figures["all"]["objects"] == {"cat": 6, "dog": 6}


def test_the_writer_is_held_to_the_answers_of_its_task(tmp_path: Path, hire: Any) -> None:
    captions(tmp_path, "one dog")
    llm = hire(lambda asked, messages, answer: json.dumps(json.loads(answer) | {"edited_object": "blur"}))
    run(knobs(tasks=("remove", "color")), tmp_path)
    remove, color = llm.held_to
    assert remove == answer_schema("remove")
    assert color["properties"]["edited_object"]["enum"] == list(conversation.load_task_prompt(AGENTS, "color").choices)
    free = hire()
    run(knobs(tasks=("remove",), constrain=False), tmp_path)
    assert free.held_to == [None]


def test_a_bad_answer_is_complained_about_and_then_dropped(tmp_path: Path, hire: Any) -> None:
    some = captions(tmp_path, "one dog", "two dogs", "three dogs")

    def say(asked: Any, messages: Any, answer: str) -> str:
        if asked["caption"] == "one dog":
            return answer if len(messages) > 10 else "no idea"
        return "{}" if asked["caption"] == "two dogs" else "I cannot: too many"

    llm = hire(say)
    summary = run(knobs(tasks=("remove",), retries=2), tmp_path)
    assert [asked["caption"] for asked, *_ in llm.heard] == ["one dog"] * 2 + ["two dogs"] * 3 + ["three dogs"]
    second = llm.heard[1][1]
    assert second[-2] == {"role": "assistant", "content": "no idea"}
    assert second[-1]["content"].startswith("That cannot be used: there is no whole JSON object in the answer. EvalRecord again")
    dropped = list(read_folder(tmp_path / instructions.OUT, Drop, "dropped-*.parquet"))
    assert [(one.reason, one.subject, one.source, one.index) for one in dropped] == [
        ("lost_key", "{}", f"{some[1].id}/remove", 1),
        ("refused", "I cannot: too many", f"{some[2].id}/remove", 2),
    ]
    assert summary.counts["dropped_remove_refused"] == summary.counts["kept"] == 1


def test_repeats_duplicates_full_tasks_and_forbidden_words_are_dropped(tmp_path: Path, hire: Any) -> None:
    captions(tmp_path, "a dog", "the dog", "two dogs", "three dogs", "four dogs", "a gory dog")

    def say(asked: Any, messages: Any, answer: str) -> str:
        text = "Remove a dog!" if asked["caption"] in ("a dog", "two dogs") else "remove the dog"
        output = "gore" if asked["caption"] == "four dogs" else "nothing"
        return json.dumps(GOOD | {"instruction": text, "output_caption": output})

    hire(say)
    run(knobs(tasks=("remove",), max_repeat_share=0.34), tmp_path)
    reasons = [one.reason for one in read_folder(tmp_path / instructions.OUT, Drop, "dropped-*.parquet")]
    assert reasons == ["duplicate", "repeated", "moderated", "moderated"]
    llm = hire(say)
    run(knobs(tasks=("remove",), max_repeat_share=1.0, max_per_task=1), tmp_path)
    reasons = [one.reason for one in read_folder(tmp_path / instructions.OUT, Drop, "dropped-*.parquet")]
    assert reasons == ["duplicate"]
    assert len(llm.heard) == 2  # the other shards were not asked


@pytest.mark.parametrize("concurrency", [1, 7])
def test_concurrency_and_a_kill_change_no_byte(tmp_path: Path, hire: Any, concurrency: int) -> None:
    captions(tmp_path)
    hire()
    run(knobs(), tmp_path)
    out = tmp_path / instructions.OUT
    whole = {file.name: file.read_bytes() for file in out.iterdir()}
    killed: list[str] = []

    def say(asked: Any, messages: Any, answer: str) -> Any:
        if asked["caption"].endswith(" iii") and asked["task"] == "add" and not killed:
            killed.append("now")
            raise KeyboardInterrupt
        return answer

    first = hire(say)
    with pytest.raises(KeyboardInterrupt):
        run(knobs(concurrency=concurrency), tmp_path)
    second = hire(say)
    run(knobs(concurrency=concurrency), tmp_path)
    asked = [(one["caption"], one["task"]) for one, *_ in second.heard]
    assert len(asked) == 12  # the first shard stands
    assert {text for text, _ in asked}.isdisjoint({one["caption"] for one, *_ in first.heard[:6]})
    assert {file.name: file.read_bytes() for file in out.iterdir()} == whole


def test_one_silent_answer_is_dropped_and_a_silent_writer_stops_the_run(tmp_path: Path, hire: Any) -> None:
    captions(tmp_path)

    def odd(asked: Any, messages: Any, answer: str) -> Any:
        return LLMError("filtered") if asked["caption"].endswith("sofa i") else answer

    hire(odd)
    summary = run(knobs(tasks=("remove",), max_failed_share=0.5), tmp_path)
    assert summary.counts == {"kept": 5, "kept_remove": 5, "dropped_writer_failed": 1, "dropped_remove_writer_failed": 1}
    with pytest.raises(LLMError, match="filtered"):
        run(knobs(tasks=("remove",), max_failed_share=0.0), tmp_path)


def test_a_real_endpoint_that_stumbles(tmp_path: Path, endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    captions(tmp_path)
    monkeypatch.setattr(instructions, "load_llm", lambda spec: OpenAILLM(*spec.split("#"), backoff_s=0.001))

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        good = json.dumps(GOOD | {"instruction": f"remove {body['seed']}"})
        number = len(endpoint.asked)
        return (500, {}) if number == 1 else endpoint.said("Here are two: {} {}" if number == 2 else good)

    endpoint.answer = answer
    world = knobs().world.model_copy(update={"llm": f"{endpoint.url}#a-model"})
    assert run(knobs(tasks=("remove",), world=world), tmp_path).counts == {"kept": 6, "kept_remove": 6}
    assert len(endpoint.asked) == 8
    found = list(read_folder(tmp_path / instructions.OUT, Instruction))
    assert {one.llm for one in found} == {f"{endpoint.url}#a-model"}
    assert all(one.text == f"remove {one.seed}" for one in found)
    forms = [body["response_format"]["json_schema"]["schema"] for *_, body in endpoint.asked]
    assert forms == [answer_schema("remove")] * 8


def test_nothing_kept_is_an_error(tmp_path: Path, hire: Any) -> None:
    captions(tmp_path)
    hire(lambda *_: "I cannot: I am tired")
    with pytest.raises(InstructionsError, match="'dropped_refused': 6"):
        run(knobs(tasks=("remove",)), tmp_path)


def test_the_toy_writer_serves_every_task(tmp_path: Path) -> None:
    things = "a red card with the letter A on the left and a blue person waving on the right"
    captions(tmp_path, f"{things} on sand", f"{things} and a big green ring at the top on a lawn", f"{things} on snow at night")
    names = tuple(task.name for task in TASKS)
    summary = run(knobs(tasks=names, concurrency=3), tmp_path)
    found = list(read_folder(tmp_path / instructions.OUT, Instruction))
    assert {one.task for one in found} == set(names)
    assert read_summary(tmp_path / instructions.OUT) == summary
    assert all(one.source_object == "red card with the letter A" for one in found if one.task == "text")
    grounds = [one.source_object or "" for one in found if one.task == "background"]
    assert grounds[0] == "red card with the letter A, blue person waving"
