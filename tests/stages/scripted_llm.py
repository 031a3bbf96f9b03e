"""An LLM for tests of the stage `instructions`: it answers by a script and records what it is asked."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emuedit.data.publish import publish, read_folder, scratch_folder
from emuedit.data.records import Caption, Drop
from emuedit.data.shards import write_shard
from emuedit.models.constrained_decoding import Schema
from emuedit.models.language_model import Message
from emuedit.stages import instructions
from emuedit.stages.instructions import InstructionsParams
from tests.stages.workspace import load_params

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
    publish(scratch, root / instructions.IN, "captions", {}, {"kept": len(captions)})
    return captions


class ScriptedLLM:
    """An LLM that gives good answers, or what `reply` makes of them. It records every request."""

    def __init__(self, reply: Reply | None = None) -> None:
        self.reply, self.lock = reply, threading.Lock()
        self.questions: list[dict[str, str]] = []
        self.conversations: list[list[Message]] = []
        self.schemas: list[Schema | None] = []
        self.sampling: list[tuple[int, float | None, float | None]] = []  # (seed, temperature, top_p)

    def write(
        self,
        messages: list[Message],
        *,
        seed: int,
        temperature: float | None = 0.9,
        top_p: float | None = 0.9,
        schema: Schema | None = None,
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


def read_drops(root: Path) -> list[Drop]:
    return list(read_folder(root / instructions.OUT, Drop, "dropped-*.parquet"))
