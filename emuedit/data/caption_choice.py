"""Choose the captions to write instructions for, out of more than are needed."""

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal

from emuedit.data.records import Caption
from emuedit.runtime import seed_for

CaptionChoice = Literal["first", "random"]


def choose_captions(captions: Iterable[Caption], n: int, choice: CaptionChoice) -> Iterator[Caption]:
    """At most `n` captions.

    `first`: in their order. `random`: from everywhere in the source, in the order of a hash of each caption, so that those that
    fill the tasks up to `max_per_task` are from everywhere, too; a further caption in the source replaces at most one.
    """
    if choice == "first":
        return islice(captions, n)
    chosen = heapq.nsmallest(n, enumerate(captions), key=lambda row: (seed_for("instructions", "choice", row[1].id), row[0]))
    return iter([caption for _, caption in chosen])
