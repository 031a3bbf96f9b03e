"""Measurements of the texts of kept pairs, shard by shard: tasks, words, lengths, duplicates. Images are not read.

Imported pairs may have no captions, and one instruction for many images: neither is a fault of theirs. A share is that of all
texts or that of the generated ones, whichever is larger, so that many imported pairs do not hide faults of the generated ones.

Memory: the texts of one shard, and about 300 bytes per kept pair.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emuedit.data import language
from emuedit.data.file_hashes import MISSING
from emuedit.data.filters import read_columns
from emuedit.data.records import Pair
from emuedit.data.text_hash import text_hash
from emuedit.prompts.diversity import normalize_text
from emuedit.training.batches.kept_pairs import KeptPairs, PairShard

MAX_EXAMPLES = 20
_COLUMNS = ("id", "instruction_id", "instruction", "source_caption", "target_caption")
INSTRUCTIONS, CAPTIONS, LANGUAGE = "instruction_words", "caption_words", "other_language"
DUPLICATES, REPEATED = "duplicate_instructions", "most_repeated_instruction"
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
    image: str = ""
    """What identifies the image before the edit, besides the captions; empty for an image that the base model generated."""
    is_imported: bool = False

    @property
    def captions(self) -> tuple[str, ...]:
        """Both captions; of an imported pair those that it has."""
        captions = (self.source_caption, self.target_caption)
        return tuple(caption for caption in captions if caption.strip()) if self.is_imported else captions


@dataclass
class TextMeasures:
    """Counts over the kept pairs added so far."""

    settings: TextSettings
    tasks: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    instruction_lengths: Counter[int] = field(default_factory=Counter)
    caption_lengths: Counter[int] = field(default_factory=Counter)
    repeats: dict[str, Counter[int]] = field(default_factory=dict)
    """Task -> hash of a text -> number of generated instructions."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    excluded: Counter[str] = field(default_factory=Counter)
    """Check -> number of texts of imported pairs that it leaves out."""
    _n_checked: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """(check, whether the texts are imported) -> number of texts."""
    _n_faulty: Counter[tuple[str, bool]] = field(default_factory=Counter)
    _instruction_ids: set[int] = field(default_factory=set)
    _texts: set[int] = field(default_factory=set)

    def add(self, pair: PairText, is_sampled: bool) -> None:
        """Count a kept pair. is_sampled: whether its language is detected, which takes 0.1 ms."""
        instruction = normalize_text(pair.instruction)
        self.tasks[pair.task] += 1
        for caption in pair.captions:
            self._count_length(CAPTIONS, caption, self.caption_lengths, self.settings.caption_words, pair)
            self.words.update(normalize_text(caption).split())
        self._exclude(CAPTIONS, 2 - len(pair.captions))
        if is_sampled and self.settings.languages:
            self._detect_language(pair, self.settings.languages)
        instruction_id = text_hash(pair.instruction_id.encode())
        if instruction_id in self._instruction_ids:  # another candidate of the same instruction
            return
        self._instruction_ids.add(instruction_id)
        self._count_length(INSTRUCTIONS, pair.instruction, self.instruction_lengths, self.settings.instruction_words, pair)
        self.words.update(instruction.split())
        if pair.is_imported:
            self._exclude(REPEATED, 1)
        else:
            self.repeats.setdefault(pair.task, Counter())[text_hash(instruction.encode())] += 1
        captions = map(normalize_text, (pair.source_caption, pair.target_caption))
        content = text_hash("\n".join((pair.task, instruction, *captions, pair.image)).encode())
        self._count(DUPLICATES, pair, content in self._texts, pair.instruction)
        self._texts.add(content)

    def figures(self) -> dict[str, float]:
        """Check -> measured value, for texts; without values that could not be measured."""
        shares = {check: self._share(check) for check in (INSTRUCTIONS, CAPTIONS, DUPLICATES, LANGUAGE)}
        most_repeated = [max(counts.values()) / counts.total() for counts in self.repeats.values()]
        shares[REPEATED] = max(most_repeated, default=None)
        return {check: share for check, share in shares.items() if share is not None}

    def _share(self, check: str) -> float | None:
        """Share of faulty texts, of all or of the generated ones; None without texts."""
        n_checked, n_faulty = (
            [counts[check, origin] for origin in (False, True)] for counts in (self._n_checked, self._n_faulty)
        )
        if not sum(n_checked):
            return None
        return max(sum(n_faulty) / sum(n_checked), n_faulty[0] / max(1, n_checked[0]))

    def _detect_language(self, pair: PairText, languages: Sequence[str]) -> None:
        if not pair.captions:  # detection is unreliable for short texts
            self._exclude(LANGUAGE, 1)
            return
        text = ". ".join((pair.captions[0], pair.instruction, *pair.captions[1:]))
        self._count(LANGUAGE, pair, language.probability(text, languages) < self.settings.min_language, text)

    def _count_length(self, check: str, text: str, lengths: Counter[int], bounds: Range, pair: PairText) -> None:
        n_words = len(text.split())
        lengths[n_words] += 1
        self._count(check, pair, not bounds[0] <= n_words <= bounds[1], text)

    def _count(self, check: str, pair: PairText, is_faulty: bool, text: str) -> None:
        self._n_checked[check, pair.is_imported] += 1
        if is_faulty:
            self._n_faulty[check, pair.is_imported] += 1
            self._note(check, f"{pair.id} {text}")

    def _exclude(self, check: str, n: int) -> None:
        if n:
            self.excluded[check] += n

    def _note(self, check: str, example: str) -> None:
        examples = self.examples.setdefault(check, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)


def damage(shard: PairShard, content: str) -> str:
    """The problem of a shard of pairs, or an empty string: by the hash of its `content`, and its columns."""
    if reason := content_damage(shard, content):
        return reason
    try:
        columns = pq.read_schema(shard.path).names
    except (pa.ArrowException, OSError) as error:
        return f"is not a Parquet file: {error}"
    missing = {"id", *(column.name for column in fields(Pair))} - {"scores", *columns}
    return f"lacks the columns {', '.join(sorted(missing))}" if missing else ""


def content_damage(shard: PairShard, content: str) -> str:
    """The problem of a published shard's content, by its hash, or an empty string."""
    if content == shard.content:
        return ""
    return "is missing" if content == MISSING else f"has the hash {content}, but summary.json has {shard.content}"


def read_texts(shard: PairShard, kept: KeptPairs, is_imported: bool) -> Iterable[PairText]:
    """The texts of the kept pairs of a shard, in its order. is_imported: whether its pairs are."""
    origin = "parent_ids" if is_imported else "recipe"
    columns: dict[str, list[Any]] = read_columns(shard.path, *_COLUMNS, origin).to_pydict()
    tasks = kept.tasks_of(columns["id"])
    rows = zip(*(columns[name] for name in (*_COLUMNS, origin)), strict=True)
    for pair_id, instruction_id, instruction, source_caption, target_caption, stated in rows:
        if pair_id in tasks:
            image = " ".join(stated[1:]) if is_imported else json.loads(stated).get("image_hash") or ""
            texts = (instruction_id, instruction, source_caption, target_caption)
            yield PairText(tasks[pair_id], pair_id, *texts, image, is_imported)


def shard_name(shard: PairShard, root: Path) -> str:
    """Display path of a shard."""
    return shard.path.relative_to(root).as_posix()
