"""Diversity metrics of instructions."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from emuedit.data.records import Instruction

_MAX_LISTED = 50
_COUNTED = ("texts", "words", "pairs", "verbs", "objects")
_VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Unicode marks that choose the glyph of the character before, such as the coloured one of an emoji."""


def normalize_text(text: str) -> str:
    """Remove case, punctuation and articles. Near-duplicates have equal normalized texts.

    Marks are kept, except those of emoji: the vowel signs of Indic scripts distinguish words. Letters and their accents are
    composed (Unicode NFC).
    """
    composed = unicodedata.normalize("NFC", _VARIATION_SELECTORS.sub("", text.casefold()))
    letters = "".join(letter if letter.isalnum() or unicodedata.category(letter) in ("Mn", "Mc") else " " for letter in composed)
    return " ".join(word for word in letters.split() if word not in ("a", "an", "the"))


def diversity(instructions: Iterable[Instruction]) -> dict[str, Any]:
    """Metrics per task and over `all` tasks, computed on normalized texts.

    They are the number of instructions, distinct-1, distinct-2, the share of distinct texts, and the most frequent
    verbs (first words) and objects. distinct-n is the number of different n-grams over the number of all n-grams
    (Li et al. 2016, arXiv 1510.03055).
    """
    counts_by_task: dict[str, dict[str, Counter[Any]]] = {}
    for instruction in instructions:
        words = normalize_text(instruction.text).split()
        objects = [name.casefold() for name in (instruction.source_object, instruction.target_object) if name]
        for task in (instruction.task, "all"):
            counts = counts_by_task.setdefault(task, {name: Counter() for name in _COUNTED})
            counts["texts"][" ".join(words)] += 1
            counts["words"].update(words)
            counts["pairs"].update(pairwise(words))
            counts["verbs"].update(words[:1])
            counts["objects"].update(objects)
    return {task: _task_metrics(counts) for task, counts in sorted(counts_by_task.items())}


def _task_metrics(counts: dict[str, Counter[Any]]) -> dict[str, Any]:
    return {
        "instructions": counts["texts"].total(),
        "distinct_1": _distinct_share(counts["words"]),
        "distinct_2": _distinct_share(counts["pairs"]),
        "distinct_texts": _distinct_share(counts["texts"]),
        "verbs": _most_frequent(counts["verbs"]),
        "objects": _most_frequent(counts["objects"]),
    }


def _distinct_share(counts: Counter[Any]) -> float:
    return round(len(counts) / max(1, counts.total()), 4)


def _most_frequent(counts: Counter[Any]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_LISTED])
