"""Measurements of the texts of kept pairs, shard by shard: tasks, words, lengths, duplicates. Images are not read.

Memory: the texts of one shard, and about 300 bytes per kept pair.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emuedit.data import language
from emuedit.data.dependencies import hash_file
from emuedit.data.filters import read_columns
from emuedit.data.records import Pair
from emuedit.prompts.diversity import normalize_text
from emuedit.training.kept_pairs import KeptPairs, PairShard

MAX_EXAMPLES = 20
_COLUMNS = ("id", "instruction_id", "instruction", "source_caption", "target_caption")
Range = tuple[int, int]


@dataclass(frozen=True)
class TextSettings:
    """Limits beyond which a text is unusual."""

    instruction_words: Range
    """Minimum and maximum words of an instruction."""
    caption_words: Range
    """Minimum and maximum words of a caption."""
    languages: tuple[str, ...]
    """ISO 639-1 codes; empty: any language."""
    min_language: float
    """Minimum probability, in [0, 1], of being in one of the languages."""


@dataclass(frozen=True)
class PairText:
    """The texts of a kept pair."""

    task: str
    id: str
    instruction_id: str
    instruction: str
    source_caption: str
    target_caption: str


@dataclass
class TextMeasures:
    """Counts over the kept pairs added so far."""

    settings: TextSettings
    tasks: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    instruction_lengths: Counter[int] = field(default_factory=Counter)
    caption_lengths: Counter[int] = field(default_factory=Counter)
    repeats: dict[str, Counter[int]] = field(default_factory=dict)
    """Task -> hash of a text -> number of instructions."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    n_instructions: int = 0
    n_duplicates: int = 0
    n_languages: int = 0
    n_other_language: int = 0
    _instruction_ids: set[int] = field(default_factory=set)
    _texts: set[int] = field(default_factory=set)

    def add(self, pair: PairText, is_sampled: bool) -> None:
        """Count a kept pair. is_sampled: whether its language is detected, which takes 0.1 ms."""
        instruction = normalize_text(pair.instruction)
        captions = (pair.source_caption, pair.target_caption)
        self.tasks[pair.task] += 1
        for caption in captions:
            self._count_length("caption_words", caption, self.caption_lengths, self.settings.caption_words, pair.id)
            self.words.update(normalize_text(caption).split())
        if is_sampled and self.settings.languages:
            text = ". ".join(
                (captions[0], pair.instruction, captions[1])
            )  # joined, since detection is unreliable for short texts
            self.n_languages += 1
            if language.probability(text, self.settings.languages) < self.settings.min_language:
                self.n_other_language += 1
                self._note("other_language", f"{pair.id} {text}")
        instruction_id = _hash(pair.instruction_id)
        if instruction_id in self._instruction_ids:  # another candidate of the same instruction
            return
        self._instruction_ids.add(instruction_id)
        self.n_instructions += 1
        self._count_length(
            "instruction_words", pair.instruction, self.instruction_lengths, self.settings.instruction_words, pair.id
        )
        self.words.update(instruction.split())
        self.repeats.setdefault(pair.task, Counter())[_hash(instruction)] += 1
        text_hash = _hash("\n".join((pair.task, instruction, *map(normalize_text, captions))))
        if text_hash in self._texts:
            self.n_duplicates += 1
            self._note("duplicate_instructions", f"{pair.id} {pair.instruction}")
        self._texts.add(text_hash)

    def figures(self) -> dict[str, float]:
        """Check -> measured value, for texts; without values that could not be measured."""
        most_repeated = [max(counts.values()) / counts.total() for counts in self.repeats.values()]
        figures = {
            "instruction_words": _share_outside(self.instruction_lengths, self.settings.instruction_words),
            "caption_words": _share_outside(self.caption_lengths, self.settings.caption_words),
            "duplicate_instructions": self.n_duplicates / max(1, self.n_instructions),
            "most_repeated_instruction": max(most_repeated, default=0.0),
        }
        return figures | ({"other_language": self.n_other_language / self.n_languages} if self.n_languages else {})

    def _count_length(self, check: str, text: str, lengths: Counter[int], bounds: Range, pair_id: str) -> None:
        n_words = len(text.split())
        lengths[n_words] += 1
        if not bounds[0] <= n_words <= bounds[1]:
            self._note(check, f"{pair_id} {text}")

    def _note(self, check: str, example: str) -> None:
        examples = self.examples.setdefault(check, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)


def damage(shard: PairShard) -> str:
    """The problem of a shard of pairs, or an empty string. Checks its hash against the summary, and its columns."""
    if reason := content_damage(shard):
        return reason
    try:
        columns = pq.read_schema(shard.path).names
    except (pa.ArrowException, OSError) as error:
        return f"is not a Parquet file: {error}"
    missing = {"id", *(column.name for column in fields(Pair))} - {"scores", *columns}
    return f"lacks the columns {', '.join(sorted(missing))}" if missing else ""


def content_damage(shard: PairShard) -> str:
    """The problem of a published shard's content, or an empty string."""
    content = hash_file(shard.path)
    if content == shard.content:
        return ""
    return "is missing" if content == "missing" else f"has the hash {content}, but summary.json has {shard.content}"


def read_texts(shard: PairShard, kept: KeptPairs) -> Iterable[PairText]:
    """The texts of the kept pairs of a shard, in its order."""
    columns: dict[str, list[Any]] = read_columns(shard.path, *_COLUMNS).to_pydict()
    tasks = kept.tasks_of(columns["id"])
    for pair_id, *texts in zip(*(columns[name] for name in _COLUMNS), strict=True):
        if pair_id in tasks:
            yield PairText(tasks[pair_id], pair_id, *texts)


def shard_name(shard: PairShard, root: Path) -> str:
    """Display path of a shard."""
    return shard.path.relative_to(root).as_posix()


def _share_outside(lengths: Counter[int], bounds: Sequence[int]) -> float:
    outside = sum(count for length, count in lengths.items() if not bounds[0] <= length <= bounds[1])
    return outside / max(1, lengths.total())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
