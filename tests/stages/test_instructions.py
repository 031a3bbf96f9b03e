import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emuedit.data.publish import publish, read_folder, read_summary, scratch_folder
from emuedit.data.records import Caption, Drop, Instruction
from emuedit.data.shards import write_shard
from emuedit.models.constrained_decoding import Schema
from emuedit.models.language_model import LLMError, Message
from emuedit.models.openai_llm import OpenAILLM
from emuedit.prompts import conversation
from emuedit.prompts.answer_schema import answer_schema
from emuedit.stages import instructions
from emuedit.stages.instructions import InstructionsError, InstructionsParams, run
from emuedit.tasks import TASKS
from tests.stages.workspace import ROOT, Workspace, check_resume, check_stop_message, load_params, read_files, toy_world

PROMPTS = ROOT / "emuedit" / "prompts"
ANSWER = {
    "instruction": "remove the dog", "original_object": "dog", "edited_object": "", "output_caption": "an empty sofa",
}  # fmt: skip

Reply = Callable[[dict[str, str], list[Message], str], str | Exception]
"""(question, conversation, a good answer) -> the answer, or an error to raise."""


def make_params(**changes: Any) -> InstructionsParams:
    small = {
        "tasks": ("remove", "add", "sketch"), "n_captions": 6, "captions_per_shard": 2, "concurrency": 1,
        "max_repeat_share": 1.0,
    }  # fmt: skip
    return load_params(InstructionsParams, "instructions", **small | changes)


def publish_captions(root: Path, *texts: str) -> list[Caption]:
    captions = [Caption(text, "c.txt", i) for i, text in enumerate(texts or [f"a dog on sofa {'i' * n}" for n in range(6)])]
    scratch = scratch_folder(root, "captions", "f")
    write_shard(scratch / "shard-00000.parquet", captions, Caption)
    publish(scratch, root / instructions.IN, "captions", {}, {})
    return captions


class ScriptedLLM:
    """An LLM that gives good answers, or what `reply` makes of them. It records every request."""

    def __init__(self, reply: Reply | None = None) -> None:
        self.reply, self.lock = reply, threading.Lock()
        self.questions: list[dict[str, str]] = []
        self.conversations: list[list[Message]] = []
        self.schemas: list[Schema | None] = []
        self.sampling: list[tuple[int, float, float]] = []  # (seed, temperature, top_p)

    def write(
        self, messages: list[Message], *, seed: int, temperature: float = 0.9, top_p: float = 0.9, schema: Schema | None = None
    ) -> str:
        question = json.loads(messages[-1]["content"].splitlines()[-1])
        with self.lock:
            self.questions.append(question)
            self.conversations.append(messages)
            self.schemas.append(schema)
            self.sampling.append((seed, temperature, top_p))
        texts = {"instruction": f"{question['task']} it, version {seed % 97}", "edited_object": "cat"}
        answer = json.dumps(ANSWER | texts | {"output_caption": f"new {seed}"})
        reply = self.reply(question, messages, answer) if self.reply else answer
        if isinstance(reply, Exception):
            raise reply
        return reply


UseLLM = Callable[..., ScriptedLLM]


@pytest.fixture
def use_llm(monkeypatch: pytest.MonkeyPatch) -> UseLLM:
    """Makes the stage ask a ScriptedLLM with this `reply`, and returns it."""

    def use(reply: Reply | None = None) -> ScriptedLLM:
        llm = ScriptedLLM(reply)
        monkeypatch.setattr(instructions, "load_llm", lambda *spec: llm)
        return llm

    return use


def read_drops(root: Path) -> list[Drop]:
    return list(read_folder(root / instructions.OUT, Drop, "dropped-*.parquet"))


def test_every_task_is_asked_once_for_every_caption(tmp_path: Path, use_llm: UseLLM) -> None:
    captions, llm = publish_captions(tmp_path), use_llm()
    summary = run(make_params(), tmp_path)
    edits = list(read_folder(tmp_path / instructions.OUT, Instruction, verify=True))
    assert [(edit.caption_id, edit.task) for edit in edits] == [(c.id, t) for c in captions for t in ("remove", "add", "sketch")]
    assert len({seed for seed, _, _ in llm.sampling}) == len(llm.sampling) == 18
    assert {(temperature, top_p) for _, temperature, top_p in llm.sampling} == {(0.9, 0.9)}
    by_task = {task: [edit for edit in edits if edit.task == task] for task in ("remove", "add", "sketch")}
    text = {caption.id: caption.text for caption in captions}
    for edit in by_task["remove"]:
        assert (edit.reverse, edit.source_caption) == (False, text[edit.caption_id])
        assert (edit.source_object, edit.target_object) == ("dog", None)
    for edit in by_task["add"]:
        assert (edit.reverse, edit.source_caption) == (True, text[edit.caption_id])
        assert (edit.source_object, edit.target_object) == (None, "cat")
    for edit in by_task["sketch"]:
        assert (edit.source_object, edit.target_object) == (None, None)
        assert (edit.target_caption if edit.reverse else edit.source_caption) == text[edit.caption_id]
    directions = {question["caption"]: question["direction"] for question in llm.questions if question["task"] == "sketch"}
    assert set(directions.values()) == {"to_map", "from_map"}
    assert all((directions[text[edit.caption_id]] == "from_map") == edit.reverse for edit in by_task["sketch"])
    assert summary.counts == {"kept": 18, "dropped": 0, "kept_remove": 6, "kept_add": 6, "kept_sketch": 6}
    diversity = json.loads((tmp_path / instructions.OUT / "diversity.json").read_text())
    assert diversity["remove"]["instructions"] == 6
    assert diversity["all"]["objects"] == {"cat": 6, "dog": 6}


def test_decoding_is_constrained_to_the_answers_of_the_task(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path, "one dog")
    llm = use_llm(lambda question, messages, answer: json.dumps(json.loads(answer) | {"edited_object": "blur"}))
    run(make_params(tasks=("remove", "color")), tmp_path)
    remove_schema, color_schema = llm.schemas
    assert remove_schema == answer_schema("remove")
    assert color_schema is not None
    choices = conversation.load_task_prompt(PROMPTS, "color").choices
    assert color_schema["properties"]["edited_object"]["enum"] == list(choices)
    unconstrained = use_llm()
    run(make_params(tasks=("remove",), constrained_decoding=False), tmp_path)
    assert unconstrained.schemas == [None]


def test_an_unusable_answer_is_asked_again_and_then_dropped(tmp_path: Path, use_llm: UseLLM) -> None:
    captions = publish_captions(tmp_path, "one dog", "two dogs", "three dogs")

    def reply(question: dict[str, str], messages: list[Message], answer: str) -> str:
        if question["caption"] == "one dog":
            return answer if "cannot be used" in messages[-1]["content"] else "no idea"
        return "{}" if question["caption"] == "two dogs" else "I cannot: too many"

    llm = use_llm(reply)
    summary = run(make_params(tasks=("remove",), retries=2), tmp_path)
    assert [question["caption"] for question in llm.questions] == ["one dog"] * 2 + ["two dogs"] * 3 + ["three dogs"]
    second = llm.conversations[1]
    assert second[-2] == {"role": "assistant", "content": "no idea"}
    assert second[-1]["content"].startswith("That cannot be used: there is no whole JSON object in the answer. Answer again")
    assert [(drop.reason, drop.subject, drop.source, drop.index) for drop in read_drops(tmp_path)] == [
        ("lost_key", "{}", f"{captions[1].id}/remove", 1),
        ("refused", "I cannot: too many", f"{captions[2].id}/remove", 2),
    ]
    assert summary.counts["dropped_remove_refused"] == summary.counts["kept"] == 1


def test_repeats_duplicates_full_tasks_and_unwanted_words_are_dropped(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path, "a dog", "the dog", "two dogs", "three dogs", "four dogs", "a gory dog")

    def reply(question: dict[str, str], messages: list[Message], answer: str) -> str:
        text = "Remove a dog!" if question["caption"] in ("a dog", "two dogs") else "remove the dog"
        output = "gore" if question["caption"] == "four dogs" else "nothing"
        return json.dumps(ANSWER | {"instruction": text, "output_caption": output})

    use_llm(reply)
    run(make_params(tasks=("remove",), max_repeat_share=0.34), tmp_path)
    assert [drop.reason for drop in read_drops(tmp_path)] == ["duplicate", "repeated", "moderated", "moderated"]
    llm = use_llm(reply)
    run(make_params(tasks=("remove",), max_repeat_share=1.0, max_per_task=1), tmp_path)
    assert [drop.reason for drop in read_drops(tmp_path)] == ["duplicate"]
    assert len(llm.questions) == 2, "a task that is full must not be asked for the other shards"


@pytest.mark.parametrize("concurrency", [1, 7])
def test_concurrency_and_an_interruption_do_not_change_the_bytes(tmp_path: Path, use_llm: UseLLM, concurrency: int) -> None:
    publish_captions(tmp_path)
    use_llm()
    run(make_params(), tmp_path)
    uninterrupted = read_files(tmp_path / instructions.OUT)
    interruptions: list[str] = []

    def reply(question: dict[str, str], messages: list[Message], answer: str) -> str:
        if question["caption"].endswith(" iii") and question["task"] == "add" and not interruptions:
            interruptions.append(question["caption"])
            raise KeyboardInterrupt
        return answer

    first = use_llm(reply)
    with pytest.raises(KeyboardInterrupt):
        run(make_params(concurrency=concurrency), tmp_path)
    second = use_llm(reply)
    run(make_params(concurrency=concurrency), tmp_path)
    assert len(second.questions) == 12, "the first shard is finished"
    first_shard = {question["caption"] for question in first.questions[:6]}
    assert {question["caption"] for question in second.questions}.isdisjoint(first_shard)
    assert read_files(tmp_path / instructions.OUT) == uninterrupted


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_terminated_process_resumes_after_the_last_shard_with_the_same_bytes(
    make_workspace: Callable[..., Workspace],
) -> None:
    params = {"n_captions": 6, "captions_per_shard": 2, "tasks": ["remove", "sketch"]}
    stopped, uninterrupted = (make_workspace(name, instructions=params) for name in ("stopped", "uninterrupted"))
    for workspace in (stopped, uninterrupted):
        colours = ("red", "blue", "green", "yellow", "white", "purple")
        publish_captions(workspace.folder, *(f"a big {colour} star on the left on grass" for colour in colours))
    check_resume(stopped, uninterrupted, "instructions", instructions.OUT, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_does_not_wait_for_an_endpoint_that_hangs(make_workspace: Callable[..., Workspace], endpoint: Any) -> None:
    is_stopped = threading.Event()

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        is_stopped.wait(120)
        return 0, {}

    endpoint.answer = answer
    workspace = make_workspace("hanging", world={"llm": f"{endpoint.url}#a-model"})
    publish_captions(workspace.folder)
    process = workspace.start("instructions")
    process.wait_until(lambda: endpoint.requests)
    try:
        status, output = process.stop(signal.SIGTERM, timeout_s=20)
    finally:
        is_stopped.set()
    check_stop_message("instructions", signal.SIGTERM, status, output)


def test_a_question_without_an_answer_is_dropped_and_many_stop_the_run(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path)

    def reply(question: dict[str, str], messages: list[Message], answer: str) -> str | Exception:
        return LLMError("filtered") if question["caption"].endswith("sofa i") else answer

    use_llm(reply)
    summary = run(make_params(tasks=("remove",), max_failed_share=0.5), tmp_path)
    failed = {"dropped_llm_failed": 1, "dropped_remove_llm_failed": 1}
    assert summary.counts == {"kept": 5, "dropped": 1, "kept_remove": 5, **failed}
    with pytest.raises(LLMError, match="filtered"):
        run(make_params(tasks=("remove",), max_failed_share=0.0), tmp_path)


def test_an_endpoint_that_fails_once_is_asked_again(tmp_path: Path, endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_captions(tmp_path)
    monkeypatch.setattr(instructions, "load_llm", lambda spec: OpenAILLM(*spec.split("#"), backoff_s=0.001))

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        text = json.dumps(ANSWER | {"instruction": f"remove {body['seed']}"})
        number = len(endpoint.requests)
        return (500, {}) if number == 1 else endpoint.chat_response("Here are two: {} {}" if number == 2 else text)

    endpoint.answer = answer
    world = toy_world() | {"llm": f"{endpoint.url}#a-model"}
    summary = run(make_params(tasks=("remove",), world=world), tmp_path)
    assert summary.counts == {"kept": 6, "dropped": 0, "kept_remove": 6}
    assert len(endpoint.requests) == 8
    edits = list(read_folder(tmp_path / instructions.OUT, Instruction))
    assert {edit.llm for edit in edits} == {f"{endpoint.url}#a-model"}
    assert all(edit.text == f"remove {edit.seed}" for edit in edits)
    schemas = [body["response_format"]["json_schema"]["schema"] for *_, body in endpoint.requests]
    assert schemas == [answer_schema("remove")] * 8


def test_keeping_nothing_is_an_error_with_the_reasons(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path)
    use_llm(lambda *_: "I cannot: I am tired")
    with pytest.raises(InstructionsError, match="'dropped_refused': 6"):
        run(make_params(tasks=("remove",)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "emuedit/agents"}, "want a file or folder .* got none at .*; it is now 'emuedit/prompts'"),
        ({"moderation": "words.txt"}, r"want a file or folder that params.yaml names, got none at .*words\.txt"),
    ],
)
def test_prompts_and_word_lists_that_do_not_exist_are_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(InstructionsError, match=message):
        run(make_params(**changes), tmp_path)


def test_the_toy_llm_answers_for_every_task(tmp_path: Path) -> None:
    objects = "a red card with the letter A on the left and a blue person waving on the right"
    publish_captions(
        tmp_path, f"{objects} on sand", f"{objects} and a big green ring at the top on a lawn", f"{objects} on snow at night"
    )
    names = tuple(task.name for task in TASKS)
    summary = run(make_params(tasks=names, concurrency=3), tmp_path)
    edits = list(read_folder(tmp_path / instructions.OUT, Instruction))
    assert {edit.task for edit in edits} == set(names)
    assert read_summary(tmp_path / instructions.OUT) == summary
    assert all(edit.source_object == "red card with the letter A" for edit in edits if edit.task == "text")
    kept_objects = [edit.source_object or "" for edit in edits if edit.task == "background"]
    assert kept_objects[0] == "red card with the letter A, blue person waving"
