"""Choose the captions to write instructions for, out of more than are needed."""

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal

from emuedit.data.records import Caption
from emuedit.runtime import seed_for

CaptionChoice = Literal["first", "random"]


def choose_captions(captions: Iterable[Caption], n: int, choice: CaptionChoice) -> Iterator[Caption]:
    """At most `n` captions, in their order.

    `random`: from everywhere in the source, by a hash of each caption; a further caption in the source replaces at most one.
    """
    if choice == "first":
        return islice(captions, n)
    chosen = heapq.nsmallest(n, enumerate(captions), key=lambda row: (seed_for("instructions", "choice", row[1].id), row[0]))
    return iter([caption for _, caption in sorted(chosen, key=lambda row: row[0])])
