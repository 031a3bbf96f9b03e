"""Which tokens of one caption stand for which of another: what Prompt-to-Prompt needs to carry attention maps across.

Hertz et al., arXiv 2208.01626. L tokens a caption, starts, ends and padding included. A `Mapping` turns the source's map
P_s [..., L] and the target's own P_t [..., L] into P_s A + P_t diag(own): one form for the paper's word swap ("replace") and
for its added phrases ("refine").
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mapping:
    """How much of each source token's map a target token takes, and how much of its own it keeps."""

    A: Tensor  # float32 [L, L], source by target
    own: Tensor  # float32 [L]

    def __call__(self, P_s: Tensor, P_t: Tensor) -> Tensor:
        """Maps [..., L] of both captions -> the target's new ones."""
        return P_s @ self.A.to(P_s) + P_t * self.own.to(P_t)


def aligned(source: Sequence[Hashable], target: Sequence[Hashable]) -> list[int | None]:
    """For every item of `target` its partner in `source`, or None: the longest common subsequence.

    It is Needleman and Wunsch's global alignment with match 1, mismatch -1, gap 0, the scores of the authors' code; of
    equally good alignments it takes the one whose partners come first, as theirs does.
    """
    n, m = len(source), len(target)
    best = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            match = best[i - 1][j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            best[i][j] = max(best[i][j - 1], best[i - 1][j], match)
    partner: list[int | None] = [None] * m
    i, j = n, m
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partner[j] = i
    return partner


def refine(source: Sequence[Hashable], target: Sequence[Hashable], length: int) -> Mapping:
    """Tokens with a partner take its map, new ones keep their own; padding takes padding's. `length` is L.

    Raises ValueError where a caption has more than L tokens.
    """
    _check(max(len(source), len(target)), length)
    A, own = torch.zeros(length, length), torch.zeros(length)
    for j, i in enumerate(aligned(source, target)):
        if i is None:
            own[j] = 1
        else:
            A[i, j] = 1
    rest = range(len(target), length)
    A[rest, rest] = 1
    return Mapping(A, own)


def replace(lengths: Sequence[int], others: Sequence[int], length: int) -> Mapping:
    """Word n of one caption gives its maps to word n of the other; the words have so many tokens each.

    Words of equally many tokens give token by token; others spread every token's map evenly over the partner's tokens. Start,
    end and padding move along. All of a map is given: the rows of A sum to 1. (Behind a swap of unequal lengths the authors'
    code takes maps from the tokens at the same place instead of the same words; we do not follow it there.)
    Raises ValueError for captions with unequally many words and for more than L tokens.
    """
    if len(lengths) != len(others):
        raise ValueError(f"want as many words in both captions to replace, got {len(lengths)} and {len(others)}; use refine")
    _check(2 + max(sum(lengths), sum(others)), length)
    A = torch.zeros(length, length)
    A[0, 0] = 1
    for n_s, n_t, i, j in zip(lengths, others, _starts(lengths), _starts(others), strict=True):
        A[i : i + n_s, j : j + n_t] = torch.eye(n_s) if n_s == n_t else 1 / n_t
    shift = sum(others) - sum(lengths)
    for i in range(1 + sum(lengths), length):
        A[i, min(i + shift, length - 1)] = 1
    return Mapping(A, torch.zeros(length))


def changed(source: Sequence[str], target: Sequence[str]) -> tuple[list[int], list[int]]:
    """Places of the words that only one of the captions has; punctuation and case do not count."""
    a, b = ([word.strip(",.;:!?").lower() for word in words] for words in (source, target))
    partner = aligned(a, b)
    kept = set(partner)
    return [i for i in range(len(a)) if i not in kept], [j for j, i in enumerate(partner) if i is None]


def spans(lengths: Sequence[int]) -> list[range]:
    """Token places of every word, behind the start token."""
    return [range(i, i + n) for i, n in zip(_starts(lengths), lengths, strict=True)]


def _starts(lengths: Sequence[int]) -> list[int]:
    return list(accumulate(lengths, initial=1))[:-1]


def _check(n_tokens: int, length: int) -> None:
    if n_tokens > length:
        raise ValueError(f"want captions of at most {length} tokens, start and end included, got {n_tokens}; shorten them")
