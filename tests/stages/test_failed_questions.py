"""The stage `instructions` when it is stopped, and when the LLM refuses a question or does not answer."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emuedit.data.publish import read_folder
from emuedit.data.records import Instruction
from emuedit.models.language_model import LLMError, LLMRefusalError, Message
from emuedit.models.openai_llm import OpenAILLM
from emuedit.prompts.answer_schema import ANSWER_KEYS
from emuedit.stages import instructions
from emuedit.stages.instructions import InstructionsError, run
from tests.repository import ROOT
from tests.stages.scripted_llm import ANSWER, Reply, UseLLM, make_params, publish_captions, read_drops
from tests.stages.workspace import Workspace, check_resume, check_stop_message, read_files, toy_world


@pytest.mark.slow
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
    second = use_llm(reply, same=True)
    run(make_params(concurrency=concurrency), tmp_path)
    assert len(second.questions) < 12, "the first shard is finished, and there are answers of the second"
    asked_twice = [question for question in second.questions if question in first.questions]
    assert [question["caption"] for question in asked_twice] == interruptions, "only the one without an answer"
    assert read_files(tmp_path / instructions.OUT) == uninterrupted


@pytest.mark.parametrize("interrupted_shard", [0, 2])
def test_a_stopped_run_asks_no_answered_question_again(tmp_path: Path, use_llm: UseLLM, interrupted_shard: int) -> None:
    """Also an answer that was unusable is kept, and a refusal."""
    captions = publish_captions(tmp_path)
    stopping = captions[2 * interrupted_shard + 1].text
    is_stopped = False

    def reply(question: dict[str, str], messages: list[Message], answer: str) -> str | Exception:
        if question["caption"] == stopping and question["task"] == "add" and not is_stopped:
            raise KeyboardInterrupt
        if question["task"] == "remove":
            return answer if "cannot be used" in messages[-1]["content"] else "no idea"
        return LLMRefusalError("filtered") if question["task"] == "sketch" else answer

    first = use_llm(reply)
    with pytest.raises(KeyboardInterrupt):
        run(make_params(), tmp_path)
    assert len(first.questions) - 1 >= 6 + 8 * interrupted_shard  # a caption makes four requests
    is_stopped = True
    second = use_llm(reply, same=True)
    run(make_params(), tmp_path)
    assert len(first.questions) - 1 + len(second.questions) == 6 * 4
    interrupted = read_files(tmp_path / instructions.OUT)
    assert not (tmp_path / "scratch/instructions").exists()
    use_llm(reply)
    run(make_params(), tmp_path)
    assert read_files(tmp_path / instructions.OUT) == interrupted


def test_more_captions_and_another_task_ask_only_what_is_new(tmp_path: Path, use_llm: UseLLM) -> None:
    """A data set grows, and a change of a setting that matters to DVC alone makes the stage run again: nothing is paid twice."""
    publish_captions(tmp_path)
    use_llm()
    run(make_params(n_captions=4, tasks=("remove",)), tmp_path)
    grown = use_llm(same=True)
    run(make_params(tasks=("remove", "add")), tmp_path)
    questions = [(question["caption"].split()[-1], question["task"]) for question in grown.questions]
    ends = ["sofa", "i", "ii", "iii", "iiii", "iiiii"]
    assert sorted(questions) == sorted([(end, "add") for end in ends] + [(end, "remove") for end in ends[4:]])
    files = read_files(tmp_path / instructions.OUT)
    again = use_llm(same=True)
    run(make_params(tasks=("remove", "add"), concurrency=3), tmp_path)
    assert not again.questions
    assert read_files(tmp_path / instructions.OUT) == files
    use_llm()
    run(make_params(tasks=("remove", "add")), tmp_path)
    assert read_files(tmp_path / instructions.OUT) == files
    warmer = use_llm(same=True)
    run(make_params(tasks=("remove",), temperature=0.1), tmp_path)
    assert len(warmer.questions) == 6, "other sampling, other answers"


def test_answers_of_another_llm_are_not_used(tmp_path: Path) -> None:
    """New weights in the folder of a model, an edited template of the toy world's: they answer otherwise."""
    model, templates = tmp_path / "llm", tmp_path / "toyworld/edits/templates"
    for folder in (model, templates):
        folder.mkdir(parents=True)
        (folder / "file").write_text("1")
    (tmp_path / "toyworld/scenes").mkdir()
    specs = {str(model): [], "toyworld.edits.rule_llm:toy_llm": ["toyworld/edits/rule_llm.py"], "https://host/v1#m": []}
    files = {spec: [str(ROOT / file) for file in names] for spec, names in specs.items()}

    def keys() -> dict[str, str]:
        return {spec: instructions._llm_key({"llm": spec}, tmp_path, files[spec]) for spec in specs}

    before = keys()
    assert keys() == before
    assert len(set(before.values())) == 3
    (model / "file").write_text("2")
    (templates / "file").write_text("2")
    after = keys()
    assert [spec for spec in specs if after[spec] != before[spec]] == [*specs][:2]


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


def test_a_few_questions_without_an_answer_are_dropped_and_many_stop_the_run(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path)

    def fail_for(*captions: str) -> Reply:
        return lambda question, messages, answer: LLMError("down") if question["caption"].endswith(captions) else answer

    llm = use_llm(fail_for("sofa i"))
    summary = run(make_params(tasks=("remove", "add")), tmp_path)
    failed = {"dropped_llm_failed": 2, "dropped_remove_llm_failed": 1, "dropped_add_llm_failed": 1}
    assert summary.counts == {"kept": 10, "dropped": 2, "kept_remove": 5, "kept_add": 5, **failed}
    assert len(llm.questions) == 12, "an endpoint has its own retries, so a question that failed is not asked again"
    use_llm(fail_for("sofa i", "sofa ii"))
    with pytest.raises(LLMError, match=r"at most 1 of 100 captions .* got 2 of 3; .*down"):
        run(make_params(tasks=("remove", "add"), max_failed_share=0.01), tmp_path)
    llm = use_llm()
    run(make_params(tasks=("remove", "add"), max_failed_share=0.02), tmp_path)
    assert [question["caption"][-3:] for question in llm.questions][:2] == [" ii", " ii"], "the share may change in between"


def test_a_refused_question_is_dropped_and_neither_asked_again_nor_a_failure(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path)
    llm = use_llm(
        lambda question, messages, answer: LLMRefusalError("filtered") if not question["caption"].endswith(" i") else answer
    )
    summary = run(make_params(tasks=("remove", "add"), max_failed_share=0.0), tmp_path)
    assert summary.counts["kept"] == 2
    assert summary.counts["dropped_refused"] == 10
    assert {(drop.reason, drop.subject) for drop in read_drops(tmp_path)} == {("refused", "filtered")}
    assert len(llm.questions) == 12


def test_an_endpoint_that_fails_once_is_asked_again(tmp_path: Path, endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_captions(tmp_path)
    monkeypatch.setattr(instructions, "load_llm", lambda spec, endpoint: OpenAILLM(*spec.split("#"), endpoint, backoff_s=0.001))

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
    assert all(edit.text == f"remove {edit.seed % 2**31}" for edit in edits)
    schemas = [body["response_format"]["json_schema"]["schema"] for *_, body in endpoint.requests]
    assert [schema["required"] for schema in schemas] == [list(ANSWER_KEYS)] * 8


def cut_at(endpoint: Any, text: str) -> Any:
    """Answers of an endpoint that needs 100 tokens for `text`, and gives half of it below."""

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        is_cut = body["max_tokens"] < 100
        content, reason = (text[: len(text) // 2], "length") if is_cut else (text, "stop")
        return 200, {"choices": [{"message": {"content": content}, "finish_reason": reason}]}

    return answer


def test_answers_that_were_cut_are_asked_again_with_a_higher_limit(tmp_path: Path, endpoint: Any) -> None:
    publish_captions(tmp_path, "one dog")
    endpoint.answer = cut_at(endpoint, "<think>" + "well, " * 500 + "</think>" + json.dumps(ANSWER))
    world = toy_world() | {"llm": f"{endpoint.url}#a-model"}
    with pytest.raises(InstructionsError, match=r"'dropped_cut': 1.*raise instructions.endpoint.max_tokens"):
        run(make_params(tasks=("remove",), world=world, endpoint={"max_tokens": 10}), tmp_path)
    n_requests = len(endpoint.requests)
    assert n_requests == 3
    first, *_, last = (body["messages"] for *_, body in endpoint.requests)
    assert "it was cut because it is too long" in last[-1]["content"]
    assert sum(len(message["content"]) for message in last[len(first) :]) < 1500, "the thoughts are not sent again"
    assert run(make_params(tasks=("remove",), world=world, endpoint={"max_tokens": 1000}), tmp_path).counts["kept"] == 1
    assert len(endpoint.requests) == n_requests + 1


def test_a_dropped_answer_that_was_cut_names_the_setting(tmp_path: Path, endpoint: Any) -> None:
    publish_captions(tmp_path, "one dog", "two dogs")
    long = cut_at(endpoint, "well, " * 500)
    good = endpoint.chat_response(json.dumps(ANSWER))
    endpoint.answer = lambda body: long(body) if "one dog" in body["messages"][-1]["content"] else good
    world = toy_world() | {"llm": f"{endpoint.url}#a-model"}
    run(make_params(tasks=("remove",), world=world, endpoint={"max_tokens": 10}), tmp_path)
    (drop,) = read_drops(tmp_path)
    assert drop.reason == "cut"
    assert "set instructions.endpoint: {max_tokens: ...} higher" in drop.subject
    assert "well, well" in drop.subject


def test_a_complete_object_in_an_answer_that_was_cut_is_used(tmp_path: Path, endpoint: Any) -> None:
    publish_captions(tmp_path, "one dog")
    endpoint.answer = cut_at(endpoint, json.dumps(ANSWER) + " I hope that it helps. " * 50)
    world = toy_world() | {"llm": f"{endpoint.url}#a-model"}
    run(make_params(tasks=("remove",), world=world, endpoint={"max_tokens": 10}), tmp_path)
    assert len(endpoint.requests) == 1


def test_an_invalid_object_in_an_answer_that_was_cut_keeps_its_reason(tmp_path: Path, endpoint: Any) -> None:
    """A higher limit would not help; after a repeated question alone it would."""
    publish_captions(tmp_path, "one dog", "two dogs", "three dogs")
    invalid = cut_at(endpoint, json.dumps(ANSWER | {"instruction": "remove " * 40}) + " I hope that it helps. " * 50)
    repeated = cut_at(endpoint, '{"task": "remove"} ' + "well, " * 500)
    good = cut_at(endpoint, json.dumps(ANSWER) + " I hope that it helps. " * 50)
    answers = {"one dog": invalid, "two dogs": repeated, "three dogs": good}
    endpoint.answer = lambda body: next(answers[key](body) for key in answers if key in body["messages"][-1]["content"])
    world = toy_world() | {"llm": f"{endpoint.url}#a-model"}
    run(make_params(tasks=("remove",), world=world, endpoint={"max_tokens": 10}), tmp_path)
    subjects = {drop.reason: drop.subject for drop in read_drops(tmp_path)}
    assert set(subjects) == {"too_long", "cut"}
    assert "max_tokens" not in subjects["too_long"]


def test_an_endpoint_that_refuses_the_key_gets_one_request_a_question(tmp_path: Path, endpoint: Any) -> None:
    publish_captions(tmp_path)
    endpoint.answer = lambda body: (401, {"error": "who are you"})
    world = toy_world() | {"llm": f"{endpoint.url}#a-model"}
    with pytest.raises(LLMError, match=r"got 3 of 3; .*answered 401 .*who are you"):
        run(make_params(tasks=("remove",), world=world), tmp_path)
    assert len(endpoint.requests) <= 4, "one question may be on its way when the third caption fails"


@pytest.mark.parametrize(("failure", "reason"), [(LLMError("down"), "llm_failed"), (LLMRefusalError("filtered"), "refused")])
def test_a_run_that_kept_nothing_can_be_repeated(failure: LLMError, reason: str, tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path, "one dog", "two dogs")
    use_llm(lambda *_: failure)
    with pytest.raises(InstructionsError, match=f"'dropped_{reason}': 2") as error:
        run(make_params(tasks=("remove",)), tmp_path)
    assert str(error.value.__cause__) == ("down" if reason == "llm_failed" else "None")
    use_llm()
    assert run(make_params(tasks=("remove",)), tmp_path).counts["kept"] == 2


def test_settings_of_the_endpoint_reach_it(tmp_path: Path, endpoint: Any) -> None:
    publish_captions(tmp_path, "one dog")
    endpoint.answer = lambda body: endpoint.chat_response(json.dumps(ANSWER))
    world = toy_world() | {"llm": f"{endpoint.url}#a-model"}
    fields = {"send_seed": False, "max_tokens": None}
    run(make_params(tasks=("remove",), world=world, temperature=None, top_p=None, endpoint=fields), tmp_path)
    (_, _, body), *others = endpoint.requests
    assert not others
    assert set(body) == {"model", "messages", "response_format"}
