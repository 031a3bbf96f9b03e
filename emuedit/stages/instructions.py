"""Stage `instructions`: ask an LLM for edits of each caption, one prompt per task; check, deduplicate and balance the answers.

In: `data/captions`. Out: `data/instructions/shard-*.parquet` of Instruction, `dropped-*.parquet` of Drop, `diversity.json`,
`summary.json`. The subject of a Drop is the text at fault (mostly the LLM's last answer), its source is `<caption id>/<task>`.
"""

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

from pydantic import Field

from emuedit import config
from emuedit.data.caption_choice import CaptionChoice, choose_captions
from emuedit.data.dependencies import CODE_ROOT, content_key, find_file, stage_dependencies, work_key
from emuedit.data.publish import Summary, publish, read_folder, read_summary, resumable_shards, scratch_folder
from emuedit.data.records import Caption, Drop, Instruction
from emuedit.data.shards import read_shard
from emuedit.data.word_list import WordList, load_word_list
from emuedit.models.answer_cache import CachingLLM
from emuedit.models.failure_limit import FailureLimit
from emuedit.models.language_model import LLM, CutAnswerError, LLMError, LLMRefusalError, Message
from emuedit.models.llm_loading import FACTORY_SPEC, is_local, load_llm
from emuedit.models.openai_llm import EndpointSettings
from emuedit.progress import Progress, waiting
from emuedit.prompts.answer_schema import AnswerError, Question, answer_schema, parse_answer
from emuedit.prompts.conversation import TaskPrompt, load_task_prompt, retry_conversation
from emuedit.prompts.deduplication import Deduplicator
from emuedit.prompts.diversity import diversity
from emuedit.prompts.instruction_record import build_instruction, choose_direction
from emuedit.runtime import Device, Dtype, Runtime, seed_for
from emuedit.stages import stage_main
from emuedit.tasks import get_task

IN, OUT = "data/captions", "data/instructions"
HEADLINE = "{kept} instructions kept, {dropped} answers dropped"
ANSWERS = ".emuedit/answers"
"""The folder with all answers of each LLM, which later runs with more captions or other tasks use again."""
_MAX_QUOTED = 300
"""Characters of a cut answer that the LLM sees when it is asked again; the rest would only cost tokens."""
_INCOMPLETE = ("no_json", "lost_key")
"""Reasons of an AnswerError for an answer that was cut before its object ended; a repeated question is an object, too."""
_LIMITS = {"timeout_s", "retries", "max_tokens"}  # they change only answers that exceed them
WITHOUT_EFFECT_ON_RESULT: dict[str, Any] = {"concurrency": True, "max_failed_share": True, "device": True, "endpoint": _LIMITS}
"""Params that do not change the instructions: they may change before a stopped run goes on."""


class InstructionsError(ValueError):
    """Raised for params that do not go together, and when no instruction was kept."""


class InstructionsParams(config.Params):
    """Params of the stage."""

    world: config.World
    """The world; only its `llm` is used."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks to write instructions for; each is asked once for every caption."""
    n_captions: int = Field(ge=1)
    """Captions to use, at most."""
    choice: CaptionChoice = "first"
    """Which captions to use if `n_captions` or `max_per_task` leave some out: the `first`, or `random` ones, for a source that is
    sorted by category."""
    prompts: str = "emuedit/prompts"
    """Folder of the task prompts, `<task>.yaml` each."""
    moderation: str = "emuedit/prompts/moderation.txt"
    """Word list (.txt) of unwanted content."""
    captions_per_shard: int = Field(400, ge=1)
    """Captions of one shard. A restart repeats unfinished shards with the stored answers. At the end of a shard, requests wait
    for the slowest one: with a `concurrency` of hundreds, set it to thousands."""
    temperature: float | None = Field(0.9, ge=0)
    """Sampling temperature of the LLM (Emu Edit: 0.9); null: not sent, as reasoning models want it."""
    top_p: float | None = Field(0.9, gt=0, le=1)
    """Nucleus sampling of the LLM (Emu Edit: 0.9); null: not sent."""
    exemplar_share: float = Field(0.6, gt=0, le=1)
    """Share of a prompt's exemplars that is shown in one call (Emu Edit: 0.6)."""
    retries: int = Field(2, ge=0)
    """How often the LLM is asked again after an unusable answer, with the reason. Ours."""
    max_words: int = Field(30, ge=1)
    """Longest instruction in words, not counting the caption where it is repeated. Map-to-image instructions may have as many
    words as the caption in addition. Ours."""
    max_repeat_share: float = Field(0.15, gt=0, le=1)
    """An instruction may be repeated for this share of the captions used, or of `max_per_task` if that is less, within a task;
    more are near-duplicates. Ours."""
    max_per_task: int = Field(100_000, ge=1)
    """Instructions kept of one task; a task that has them is not asked any more. Ours."""
    max_failed_share: float = Field(0.02, ge=0, le=1)
    """Share of the last 100 captions with a question that the LLM did not answer; beyond it the run stops. A refusal is an
    answer."""
    constrained_decoding: bool = True
    """Constrain the LLM to the JSON Schema of answers; false for endpoints that do not know `response_format`."""
    concurrency: int = Field(4, ge=1)
    """Questions asked at the same time; 1 for a model on this machine. It does not change the result."""
    endpoint: EndpointSettings = EndpointSettings()
    """Time limit, retries and seed of requests, for a world whose `llm` is an endpoint."""
    device: Device = "auto"
    """Device of a chat model on this machine: auto, cuda, mps or cpu, or a GPU with its number, such as cuda:1."""
    dtype: Dtype = "auto"
    """Its number format: auto, float32, bfloat16 or float16."""


@dataclass(frozen=True)
class Questioner:
    """Everything that a question needs besides its caption and task. Safe to use from several threads."""

    llm: LLM
    prompts: dict[str, TaskPrompt]
    forbidden: WordList
    params: InstructionsParams

    def ask(self, caption: Caption, task: str) -> Instruction | Drop | LLMError:
        """The core function: ask for one edit until the answer is usable or the retries are used up.

        Returns an LLMError instead of raising it: only the caller sees whether a single question failed or the endpoint is
        down. Such a question is not asked again, because the endpoint has its own retries; nor is one that the LLM refuses. An
        answer that was cut is used if its JSON is complete and valid, and is asked for again otherwise; its reason is `cut` only
        if the JSON is not complete.
        """
        prompt, params = self.prompts[task], self.params
        source = f"{caption.id}/{task}"
        if self.forbidden.first_match([caption.text]):
            return Drop(caption.text, "moderated", source, caption.index)
        question = Question(task, caption.text, choose_direction(caption, task))
        messages = prompt.build_conversation(question, params.exemplar_share, caption.id, task)
        schema = answer_schema(task, prompt.choices) if params.constrained_decoding else None
        failure: AnswerError | None = None
        cut: CutAnswerError | None = None
        answer = ""
        for attempt in range(params.retries + 1):
            seed = seed_for("instructions", caption.id, task, attempt)
            try:
                answer, cut = self._write(messages, seed, schema)
                edit = parse_answer(answer, question, params.max_words, prompt.choices, is_cut=cut is not None)
            except LLMRefusalError as error:
                return Drop(str(error), "refused", source, caption.index)
            except LLMError as error:
                return error
            except AnswerError as error:
                failure = error
                if cut and error.reason in _INCOMPLETE:
                    failure = AnswerError("cut", "it was cut because it is too long")
                if failure.final:
                    break
                messages = retry_conversation(messages, answer[:_MAX_QUOTED] if cut else answer, failure, question)
                continue
            instruction = build_instruction(caption, question, edit, seed, params.world.llm, answer)
            texts = (instruction.text, edit.output_caption, edit.original_object or "", edit.edited_object or "")
            if self.forbidden.first_match(texts):
                return Drop(answer, "moderated", source, caption.index)
            return instruction
        assert failure is not None
        subject = f"{cut}; the answer: {answer}" if failure.reason == "cut" else answer
        return Drop(subject, failure.reason, source, caption.index)

    def _write(self, messages: list[Message], seed: int, schema: dict[str, Any] | None) -> tuple[str, CutAnswerError | None]:
        """The LLM's answer, and the error if it was cut. Raises other LLMErrors."""
        temperature, top_p = self.params.temperature, self.params.top_p
        try:
            return self.llm.write(messages, seed=seed, temperature=temperature, top_p=top_p, schema=schema), None
        except CutAnswerError as error:
            return error.text, error


def run(params: InstructionsParams, root: Path) -> Summary:
    """Ask shard by shard, skip shards that an earlier run left in scratch, publish to `data/instructions`."""
    prompt_folder, word_list = (_existing_file(name, root) for name in (params.prompts, params.moderation))
    prompts = {get_task(task).name: load_task_prompt(prompt_folder, task) for task in params.tasks}
    factory_files = _factory_files(params.world.llm)
    spec = config.resolve_path(params.world.llm, root)
    runtime = Runtime.choose(params.device, params.dtype) if is_local(spec) else None
    named = {"llm": params.world.llm} | ({} if runtime is None else {"dtype": runtime.dtype})
    answers = root / ANSWERS / f"{_llm_key(named, root, factory_files)}.jsonl"
    answers.parent.mkdir(parents=True, exist_ok=True)
    llm = CachingLLM(_load_llm(params, spec, runtime), answers)
    recorded = params.model_dump(mode="json", exclude={"world": True, "dtype": True} | WITHOUT_EFFECT_ON_RESULT) | named
    key = work_key(
        "instructions", recorded, root, *(str(prompt_folder / f"{task}.yaml") for task in params.tasks),
        str(word_list), *factory_files,
    )  # fmt: skip
    scratch = scratch_folder(root, "instructions", key)
    questioner = Questioner(llm, prompts, load_word_list(word_list), params)
    failures = FailureLimit(params.max_failed_share)
    n_captions = min(params.n_captions, read_summary(root / IN).counts.get("kept", params.n_captions))
    max_repeats = max(1, round(params.max_repeat_share * min(n_captions, params.max_per_task)))
    deduplicator = Deduplicator(max_repeats, params.max_per_task)
    counts: Counter[str] = Counter()
    with Progress("instructions", n_captions * len(params.tasks), "question") as progress:
        captions = choose_captions(read_folder(root / IN, Caption), params.n_captions, params.choice)

        def make_shard(captions_of_shard: list[Caption]) -> tuple[list[Instruction], list[Drop]]:
            return deduplicator.filter(_ask_all(questioner, captions_of_shard, deduplicator, failures, progress))

        for shard in resumable_shards(scratch, _chunks(captions, params.captions_per_shard), make_shard, Instruction):
            if shard.resumed:
                for instruction in shard.records:
                    deduplicator.keep(instruction)
                progress.advance(len(shard.source) * len(params.tasks))
            counts.update(kept=len(shard.records), dropped=len(shard.drops))
            counts.update(f"kept_{instruction.task}" for instruction in shard.records)
            counts.update(f"dropped_{drop.reason}" for drop in shard.drops)
            counts.update(f"dropped_{drop.source.partition('/')[2]}_{drop.reason}" for drop in shard.drops)
    if not counts["kept"]:
        for file in scratch.glob("shard-*.parquet"):
            file.unlink()  # the next run asks again what was not answered; the other answers are kept
        hint = "; answers were cut: raise instructions.endpoint.max_tokens" if counts["dropped_cut"] else ""
        raise InstructionsError(
            f"want at least one instruction, got {dict(counts)}; read {scratch}/dropped-*.parquet for the LLM's answers{hint}"
        ) from failures.last_error
    instructions = (row for file in sorted(scratch.glob("shard-*.parquet")) for row in read_shard(file, Instruction))
    report = json.dumps(diversity(instructions), indent=1, ensure_ascii=False)
    (scratch / "diversity.json").write_text(report + "\n", encoding="utf-8")
    return publish(scratch, root / OUT, "instructions", recorded, counts)


def _existing_file(name: str, root: Path) -> Path:
    """A file or folder that the params name. Raises InstructionsError where there is none."""
    path = find_file(name, root)
    if not path.exists():
        hint = config.renamed_hint(name)
        raise InstructionsError(f"want a file or folder that params.yaml names, got none at {path.resolve()}{hint}")
    return path


def _ask_all(
    questioner: Questioner,
    captions: Sequence[Caption],
    deduplicator: Deduplicator,
    failures: FailureLimit,
    progress: Progress,
) -> Iterator[Instruction | Drop]:
    """The answers for each caption and each task that is not full; their order does not depend on `params.concurrency`."""
    params = questioner.params
    tasks = [task for task in params.tasks if deduplicator.n_kept[task] < params.max_per_task]
    progress.advance(len(captions) * (len(params.tasks) - len(tasks)))
    pool = ThreadPoolExecutor(params.concurrency)
    try:
        answers = pool.map(lambda question: questioner.ask(*question), product(captions, tasks))
        for caption in captions:
            failures.start_caption()
            for task in tasks:
                answer = next(answers)
                progress.advance()
                if isinstance(answer, LLMError):
                    failures.count(answer)
                    yield Drop(str(answer), "llm_failed", f"{caption.id}/{task}", caption.index)
                else:
                    yield answer
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # stopped, it does not wait for an endpoint that hangs


def _chunks(captions: Iterator[Caption], size: int) -> Iterator[list[Caption]]:
    while chunk := list(islice(captions, size)):
        yield chunk


def _load_llm(params: InstructionsParams, spec: str, runtime: Runtime | None) -> LLM:
    """runtime: of a chat model on this machine."""
    if runtime is None:
        return load_llm(spec, endpoint=params.endpoint)
    if params.concurrency > 1:
        raise InstructionsError(f"want concurrency 1 for a model on this machine, got {params.concurrency}; its seed is global")
    with waiting(f"loading {params.world.llm}"):
        return load_llm(spec, runtime.device, runtime.torch_dtype)


def _factory_files(spec: str) -> list[str]:
    """The files that decide what an LLM 'module:factory' answers: its module and the modules beside it."""
    if not FACTORY_SPEC.fullmatch(spec):
        return []
    module = importlib.util.find_spec(spec.partition(":")[0])
    return sorted(map(str, Path(module.origin).parent.glob("*.py"))) if module and module.origin else []


def _llm_key(named: Mapping[str, str], root: Path, factory_files: Sequence[str]) -> str:
    """Hash, 16 hex digits, of everything that determines an answer: the name of an endpoint, the files of a local model.

    named: `llm`, and the `dtype` of a chat model on this machine. For an LLM 'module:factory' it covers the files of its package
    and the stage's deps outside this package.
    """
    folder = Path(config.resolve_path(named["llm"], root))
    files = [folder] if folder.exists() else [Path(file) for file in factory_files]
    if factory_files:
        elsewhere = (root / IN, root / "emuedit", CODE_ROOT / "emuedit")  # what it is asked, and who asks
        deps = stage_dependencies("instructions", root)
        files += [dep for dep in deps if not any(dep.is_relative_to(folder) for folder in elsewhere)]
    return content_key(named, *files)


if __name__ == "__main__":
    stage_main("instructions")
