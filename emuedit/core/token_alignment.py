"""Align the tokens of two captions, so that Prompt-to-Prompt can copy attention maps from one to the other.

Hertz et al., arXiv 2208.01626. L: tokens of a caption, with start, end and padding. A `TokenMapping` combines the
source's attention map P_s [..., L] and the target's own map P_t [..., L] as P_s A + P_t diag(target_weight). This covers the
paper's word swap (`replace`) and its added phrases (`refine`).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenMapping:
    """For each target token: weights of the source tokens' maps, and the weight of its own map."""

    A: Tensor  # float32 [L, L], source by target
    target_weight: Tensor  # float32 [L], weight of the target's own map


def align_tokens(source: Sequence[Hashable], target: Sequence[Hashable]) -> list[int | None]:
    """For every item of `target`, find the index of its match in `source`, or None, by longest common subsequence.

    This is Needleman and Wunsch's global alignment with match 1, mismatch -1 and gap 0, the scores of the paper's code.
    Among equally good alignments it uses the earliest matches, like the paper's code.
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


def refine(source: Sequence[Hashable], target: Sequence[Hashable], length: int) -> TokenMapping:
    """Mapping for added words: matched tokens use the source's map, new tokens keep their own. `length` is L.

    Padding uses the maps of the source's padding at the same positions. Padding of a shorter target, at positions where the
    source has words or its end token, keeps its own maps: at equal positions, as in the paper's code, it would get the maps of
    those words, a second time. Raises ValueError if a caption has more than L tokens.
    """
    _check_length(max(len(source), len(target)), length)
    A, target_weight = torch.zeros(length, length), torch.zeros(length)
    for j, i in enumerate(align_tokens(source, target)):
        if i is None:
            target_weight[j] = 1
        else:
            A[i, j] = 1
    n_used = max(len(source), len(target))
    target_weight[len(target) : n_used] = 1
    A[range(n_used, length), range(n_used, length)] = 1
    return TokenMapping(A, target_weight)


def replace(source_lengths: Sequence[int], target_lengths: Sequence[int], length: int) -> TokenMapping:
    """Mapping for a word swap: word n of the target uses the maps of word n of the source. `length` is L.

    `source_lengths` and `target_lengths` are the numbers of tokens of each word. Words with equal numbers of tokens are mapped
    token by token; otherwise every source token's map is distributed evenly over the target word's tokens. Start, end and padding
    are shifted accordingly. Maps are preserved in total: the rows of A sum to 1. (After a swap of words of unequal lengths, the
    paper's code copies maps by token position, not by word; we do not follow it there.)

    Raises ValueError for captions with unequally many words and for more than L tokens.
    """
    if len(source_lengths) != len(target_lengths):
        raise ValueError(
            f"want equal numbers of words in both captions, got {len(source_lengths)} and {len(target_lengths)}; use refine"
        )
    n_source, n_target = sum(source_lengths), sum(target_lengths)
    _check_length(2 + max(n_source, n_target), length)
    A = torch.zeros(length, length)
    A[0, 0] = 1
    starts = zip(_word_starts(source_lengths), _word_starts(target_lengths), strict=True)
    for n_s, n_t, (i, j) in zip(source_lengths, target_lengths, starts, strict=True):
        A[i : i + n_s, j : j + n_t] = torch.eye(n_s) if n_s == n_t else 1 / n_t
    for i in range(1 + n_source, length):
        A[i, min(i + n_target - n_source, length - 1)] = 1
    return TokenMapping(A, torch.zeros(length))


def changed_words(source: Sequence[str], target: Sequence[str]) -> tuple[list[int], list[int]]:
    """Positions of the words that are in only one caption; punctuation and case are ignored.

    Words are matched at equal positions if no alignment matches more words, so both lists are equal after a swap in place.
    Otherwise they are matched by `align_tokens`, whose earliest matches alone would not find such a swap: after "in the sky in
    the rain" becomes "on a beach in the rain", it matches the "in the" of the sky.
    """
    source_words, target_words = ([word.strip(",.;:!?").lower() for word in words] for words in (source, target))
    partner = align_tokens(source_words, target_words)
    aligned = set(partner)
    removed = [i for i in range(len(source_words)) if i not in aligned]
    added = [j for j, i in enumerate(partner) if i is None]
    if len(source_words) == len(target_words):
        swapped = [i for i, words in enumerate(zip(source_words, target_words, strict=True)) if words[0] != words[1]]
        if len(swapped) == len(added):
            return swapped, swapped
    return removed, added


def spans(lengths: Sequence[int]) -> list[range]:
    """Token positions of every word, after the start token; `lengths`: number of tokens per word."""
    return [range(i, i + n) for i, n in zip(_word_starts(lengths), lengths, strict=True)]


def _word_starts(lengths: Sequence[int]) -> list[int]:
    return list(accumulate(lengths, initial=1))[:-1]


def _check_length(n_tokens: int, length: int) -> None:
    if n_tokens > length:
        raise ValueError(f"want captions of at most {length} tokens, including start and end, got {n_tokens}; shorten them")
