"""Station `instructions`: captions -> edits in words, asked of a llm by one agent per task, checked, and sieved.

In: `data/captions`. Out: `data/instructions/shard-*.parquet` of Instruction, `dropped-*.parquet` of Drop, `diversity.json`,
`summary.json`. A Drop's subject is the text at fault (the llm's last answer, mostly), its source is `<caption id>/<task>`.
"""

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field
from tqdm import tqdm

from emuedit import config
from emuedit.data.publish import Summary, fingerprint, publish, read_folder
from emuedit.data.publish import scratch_folder as scratch_for
from emuedit.data.records import Caption, Drop, Instruction
from emuedit.data.shards import read_shard, write_shard
from emuedit.models.language_model import FACTORY, LLM, LLMError, LocalLLM, load_llm
from emuedit.prompts import conversation as agents
from emuedit.prompts import moderation
from emuedit.prompts.answer_schema import BOTH_WAYS, AnswerError, Direction, Edit, Question, read, schema
from emuedit.prompts.conversation import Agent
from emuedit.prompts.diversity import diversity, tidy
from emuedit.prompts.moderation import WordList
from emuedit.runtime import Runtime, seed_for
from emuedit.tasks import task as known_task

IN, OUT = "data/captions", "data/instructions"


class InstructionsError(ValueError):
    """Raised for knobs that do not go together, and when nothing was kept."""


class InstructionsParams(config.Params):
    """Knobs of the station."""

    world: config.World
    """The world; only its `llm` matters here."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks to write instructions for; each is asked once for every caption."""
    agents: str
    """Folder of the agents, `<task>.yaml` each."""
    moderation: str
    """Word list (.txt) of what is not wanted."""
    n_captions: int = Field(ge=1)
    """Captions to use, at most."""
    captions_per_shard: int = Field(ge=1)
    """Captions of one shard, the unit of work that a restart does not repeat."""
    temperature: float = Field(ge=0)
    """Of the llm."""
    top_p: float = Field(gt=0, le=1)
    """Of the llm."""
    exemplar_share: float = Field(gt=0, le=1)
    """Share of an agent's exemplars that is shown to the llm in one call."""
    retries: int = Field(ge=0)
    """How often the llm is asked again after an answer of no use, and told why."""
    max_words: int = Field(ge=1)
    """Longest instruction, words; the caption, where it is repeated, is not counted."""
    max_repeat_share: float = Field(gt=0, le=1)
    """An instruction of the same words may stand with this share of the captions, in one task; more are near-duplicates."""
    max_per_task: int = Field(ge=1)
    """Instructions kept of one task; a task that has them is asked no more."""
    max_failed_share: float = Field(ge=0, le=1)
    """Share of a shard's questions that the llm may fail to answer at all; beyond it the run stops."""
    constrain: bool
    """Hold the llm to the JSON Schema of answers; for endpoints that do not know `response_format`: false."""
    concurrency: int = Field(ge=1)
    """Questions asked at the same time; changes no result."""


@dataclass(frozen=True)
class Asking:
    """All that one question needs, besides its caption and task. `answer` is the heart: safe to call from several threads."""

    llm: LLM
    agents: dict[str, Agent]
    forbidden: WordList
    params: InstructionsParams

    def answer(self, caption: Caption, task: str) -> Instruction | Drop | LLMError:
        """Ask for one edit until the answer is good or the retries are used up.

        A LLMError (no text at all) comes back as a value: only the shard can tell one odd caption from a dead endpoint.
        """
        agent, params = self.agents[task], self.params
        source = f"{caption.id}/{task}"
        if self.forbidden.objection([caption.text]):
            return Drop(caption.text, "moderated", source, caption.index)
        asked = Question(task, caption.text, _direction(caption, task))
        told = agent.conversation(asked, params.exemplar_share, caption.id, task)
        form = schema(task, agent.choices) if params.constrain else None
        failed: AnswerError | LLMError | None = None
        text = ""
        for attempt in range(params.retries + 1):
            seed = seed_for("instructions", caption.id, task, attempt)
            try:
                text = self.llm.write(told, seed=seed, temperature=params.temperature, top_p=params.top_p, schema=form)
                edit = read(text, asked, params.max_words, agent.choices)
            except LLMError as error:
                failed = error
                continue
            except AnswerError as error:
                failed = error
                if error.final:
                    break
                told = agents.again(told, text, error, asked)
                continue
            written = _instruction(caption, asked, edit, seed, params.world.llm, text)
            said = (written.text, edit.output_caption, edit.original_object or "", edit.edited_object or "")
            return Drop(text, "moderated", source, caption.index) if self.forbidden.objection(said) else written
        assert failed is not None
        return failed if isinstance(failed, LLMError) else Drop(text, failed.reason, source, caption.index)


@dataclass
class Sieve:
    """What was kept so far, to tell duplicates and to keep tasks in balance. Filled in the order of the captions."""

    max_repeats: int
    max_per_task: int
    seen: set[int] = field(default_factory=set)
    repeats: Counter[tuple[str, str]] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    def fault(self, one: Instruction) -> str | None:
        """Why not to keep it: `duplicate` (same task, instruction and caption), `repeated` (same words too often), `full`."""
        if _mark(one) in self.seen:
            return "duplicate"
        if self.repeats[one.task, tidy(one.text)] >= self.max_repeats:
            return "repeated"
        return "full" if self.kept[one.task] >= self.max_per_task else None

    def keep(self, one: Instruction) -> None:
        """Remember it."""
        self.seen.add(_mark(one))
        self.repeats[one.task, tidy(one.text)] += 1
        self.kept[one.task] += 1


def run(params: InstructionsParams, root: Path) -> Summary:
    """Ask shard by shard, skip shards that an earlier run left in scratch, publish to `data/instructions`."""
    llm = _writer(params, root)
    asking = Asking(
        llm,
        {known_task(task).name: agents.load(root / params.agents, task) for task in params.tasks},
        moderation.load(root / params.moderation),
        params,
    )
    knobs = params.model_dump(mode="json", exclude={"world", "concurrency"}) | {"llm": params.world.llm}
    behind = [root / IN, *(root / params.agents / f"{task}.yaml" for task in params.tasks), root / params.moderation]
    code = [*sorted(Path(agents.__file__).parent.glob("*.py")), *_code_of(params.world.llm), Path(__file__)]
    scratch = scratch_for(root, "instructions", fingerprint(knobs, *behind, *code))
    sieve = Sieve(max(1, round(params.max_repeat_share * params.n_captions)), params.max_per_task)
    counts: Counter[str] = Counter()
    captions = islice(read_folder(root / IN, Caption), params.n_captions)
    with tqdm(total=params.n_captions * len(params.tasks), unit="question", desc="instructions") as bar:
        for number, chunk in enumerate(_chunks(captions, params.captions_per_shard)):
            kept_path, drop_path = scratch / f"shard-{number:05d}.parquet", scratch / f"dropped-{number:05d}.parquet"
            if kept_path.exists():  # written after its drops, so both are there
                kept, dropped = read_shard(kept_path, Instruction), read_shard(drop_path, Drop)
                for one in kept:
                    sieve.keep(one)
                bar.update(len(chunk) * len(params.tasks))
            else:
                kept, dropped = sieved(_ask_all(asking, chunk, sieve, bar), sieve)
                write_shard(drop_path, dropped, Drop)
                write_shard(kept_path, kept, Instruction)
            counts["kept"] += len(kept)
            counts.update(f"kept_{one.task}" for one in kept)
            counts.update(f"dropped_{one.reason}" for one in dropped)
            counts.update(f"dropped_{one.source.partition('/')[2]}_{one.reason}" for one in dropped)
    if not counts["kept"]:
        raise InstructionsError(
            f"want at least one instruction, got {dict(counts)}; read {scratch}/dropped-*.parquet for the answers"
        )
    every = (one for file in sorted(scratch.glob("shard-*.parquet")) for one in read_shard(file, Instruction))
    (scratch / "diversity.json").write_text(json.dumps(diversity(every), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return publish(scratch, root / OUT, "instructions", knobs, counts)


def sieved(answers: Iterator[Instruction | Drop], sieve: Sieve) -> tuple[list[Instruction], list[Drop]]:
    """What is kept of a shard's answers, and what is dropped."""
    kept, dropped = [], []
    for one in answers:
        if isinstance(one, Drop):
            dropped.append(one)
        elif fault := sieve.fault(one):
            dropped.append(Drop(one.text, fault, f"{one.caption_id}/{one.task}", -1))
        else:
            sieve.keep(one)
            kept.append(one)
    return kept, dropped


def _ask_all(asking: Asking, captions: Sequence[Caption], sieve: Sieve, bar: "tqdm[Any]") -> Iterator[Instruction | Drop]:
    """The answers for every caption and every task that is not full, in that order, however many are asked at once."""
    params = asking.params
    tasks = [task for task in params.tasks if sieve.kept[task] < params.max_per_task]
    bar.update(len(captions) * (len(params.tasks) - len(tasks)))
    questions = [(caption, task) for caption in captions for task in tasks]
    failures = 0
    pool = ThreadPoolExecutor(params.concurrency)
    try:
        for (caption, task), answer in zip(questions, pool.map(lambda one: asking.answer(*one), questions), strict=True):
            bar.update()
            if isinstance(answer, LLMError):
                failures += 1
                if failures > params.max_failed_share * len(questions):
                    raise answer
                yield Drop(str(answer), "llm_failed", f"{caption.id}/{task}", caption.index)
            else:
                yield answer
    finally:
        pool.shutdown(cancel_futures=True)


def _instruction(caption: Caption, asked: Question, edit: Edit, seed: int, llm: str, answer: str) -> Instruction:
    """The record: `add` and the way from a map are built backwards; there the painted picture is the target's."""
    source, target = caption.text, edit.output_caption
    if asked.direction == "from_map":
        source, target = target, source
    return Instruction(
        caption_id=caption.id,
        task=asked.task,
        text=edit.instruction,
        source_caption=source,
        target_caption=target,
        source_object=edit.original_object,
        target_object=edit.edited_object,
        reverse=asked.task == "add" or asked.direction == "from_map",
        seed=seed,
        llm=llm,
        answer=answer,
    )


def _direction(caption: Caption, task: str) -> Direction | None:
    """Half of the captions each way, by chance."""
    if task not in BOTH_WAYS:
        return None
    return "from_map" if seed_for("instructions", "direction", caption.id, task) % 2 else "to_map"


def _mark(one: Instruction) -> int:
    return seed_for("instructions", "mark", one.task, tidy(one.text), tidy(one.source_caption))


def _chunks(captions: Iterator[Caption], size: int) -> Iterator[list[Caption]]:
    while chunk := list(islice(captions, size)):
        yield chunk


def _writer(params: InstructionsParams, root: Path) -> LLM:
    spec = config.resolve_path(params.world.llm, root)
    if "://" in spec or FACTORY.fullmatch(spec):
        return load_llm(spec)
    runtime = Runtime.choose()
    llm = load_llm(spec, runtime.device, runtime.torch_dtype)
    if isinstance(llm, LocalLLM) and params.concurrency > 1:
        raise InstructionsError(f"want concurrency 1 for a model on this machine, got {params.concurrency}; its seed is global")
    return llm


def _code_of(spec: str) -> list[Path]:
    """Files that decide what a llm 'module:factory' says: its module and what lies beside it."""
    if not FACTORY.fullmatch(spec):
        return []
    found = importlib.util.find_spec(spec.partition(":")[0])
    return sorted(Path(found.origin).parent.glob("*.py")) if found and found.origin else []


if __name__ == "__main__":
    run(config.load(InstructionsParams, "instructions"), Path())
