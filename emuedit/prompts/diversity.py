"""How varied instructions are, in figures."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from emuedit.data.records import Instruction

_LISTED = 50


def tidy(text: str) -> str:
    """A text without case, punctuation and articles: what near-duplicates share."""
    kept = "".join(letter if letter.isalnum() else " " for letter in text.casefold())
    return " ".join(word for word in kept.split() if word not in ("a", "an", "the"))


def diversity(instructions: Iterable[Instruction]) -> dict[str, Any]:
    """Per task and over `all`: how many, distinct-1 and distinct-2, share of distinct texts, the commonest verbs and objects.

    distinct-n is the number of different n-grams over that of all n-grams (Li et al. 2016, arXiv 1510.03055).
    The verb is the first word. Texts are compared tidied.
    """
    counts: dict[str, dict[str, Counter[Any]]] = {}
    for one in instructions:
        words = tidy(one.text).split()
        for task in (one.task, "all"):
            of = counts.setdefault(task, {name: Counter() for name in ("texts", "words", "pairs", "verbs", "objects")})
            of["texts"][" ".join(words)] += 1
            of["words"].update(words)
            of["pairs"].update(pairwise(words))
            of["verbs"].update(words[:1])
            of["objects"].update(thing.casefold() for thing in (one.source_object, one.target_object) if thing)
    return {task: _figures(of) for task, of in sorted(counts.items())}


def _figures(of: dict[str, Counter[Any]]) -> dict[str, Any]:
    def distinct(name: str) -> float:
        return round(len(of[name]) / max(1, of[name].total()), 4)

    def commonest(name: str) -> dict[str, int]:
        return dict(sorted(of[name].items(), key=lambda item: (-item[1], item[0]))[:_LISTED])

    return {
        "instructions": of["texts"].total(),
        "distinct_1": distinct("words"),
        "distinct_2": distinct("pairs"),
        "distinct_texts": distinct("texts"),
        "verbs": commonest("verbs"),
        "objects": commonest("objects"),
    }
