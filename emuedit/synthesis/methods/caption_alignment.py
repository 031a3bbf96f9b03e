"""Align the words and tokens of the two captions of an edit for Prompt-to-Prompt (Hertz et al., arXiv 2208.01626).

Shapes: L tokens of a caption, with start, end and padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emuedit.core import token_alignment


@dataclass(frozen=True)
class CaptionTokens:
    """The words of a caption, and the token ids of every word."""

    words: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]

    @staticmethod
    def from_caption(tokenizer: Any, caption: str) -> CaptionTokens:
        """Split a caption at spaces and tokenize its words.

        Raises ValueError for a tokenizer that joins words, and for a caption longer than the tokenizer's maximum.
        """
        words = tuple(caption.split())
        token_ids = tuple(tuple(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words)
        caption_ids, word_ids = list(tokenizer(caption)["input_ids"]), [i for ids in token_ids for i in ids]
        if caption_ids[1:-1] != word_ids or len(caption_ids) > tokenizer.model_max_length:
            raise ValueError(
                f"want a caption of at most {tokenizer.model_max_length} tokens, tokenized by word between start and end token, "
                f"got {len(caption_ids)} for {caption!r}; shorten it, or use a CLIP tokenizer"
            )
        return CaptionTokens(words, token_ids)

    @property
    def sequence(self) -> list[int | str]:
        """All token ids in order, between markers for start and end."""
        return ["start", *(i for ids in self.token_ids for i in ids), "end"]

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of every word."""
        return [len(ids) for ids in self.token_ids]

    def token_mask(self, positions: Iterable[int], length: int) -> Tensor:
        """float [L]: 1 at the tokens of the words at `positions`, else 0."""
        spans, mask = token_alignment.spans(self.lengths), torch.zeros(length)
        for position in positions:
            mask[list(spans[position])] = 1
        return mask


def map_tokens(source: CaptionTokens, target: CaptionTokens, length: int) -> token_alignment.TokenMapping:
    """Map tokens by word swap (`replace`) if only words at equal positions differ, else by `refine`. This rule is ours.

    Equal numbers of words are not enough: if one word is removed and another is added elsewhere, the words between them are at
    other positions, and a swap would give them each other's maps.
    """
    removed, added = token_alignment.changed_words(source.words, target.words)
    if removed == added:  # as many words on both sides, then
        return token_alignment.replace(source.lengths, target.lengths, length)
    return token_alignment.refine(source.sequence, target.sequence, length)


@dataclass(frozen=True)
class CaptionAlignment:
    """How cross-attention maps of an edit depend on its source's, and the changed tokens; all float [L]."""

    mapping: token_alignment.TokenMapping
    removed: Tensor  # 1 at tokens of words that are only in the source's caption
    added: Tensor  # 1 at tokens of words that are only in the edit's caption

    @staticmethod
    def build(source: CaptionTokens, target: CaptionTokens, length: int) -> CaptionAlignment:
        """Align two captions; `length` is L."""
        removed, added = token_alignment.changed_words(source.words, target.words)
        mapping = map_tokens(source, target, length)
        return CaptionAlignment(mapping, source.token_mask(removed, length), target.token_mask(added, length))

    @staticmethod
    def without_source(length: int) -> CaptionAlignment:
        """No alignment: every token keeps its own map, and no word is changed."""
        mapping = token_alignment.TokenMapping(torch.zeros(length, length), torch.ones(length))
        return CaptionAlignment(mapping, torch.zeros(length), torch.zeros(length))
