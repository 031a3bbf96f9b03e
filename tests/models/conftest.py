"""A small CLIP tokenizer and two images, for tests with tiny random networks. Nothing is downloaded."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

CAPTIONS = [
    "a small red circle on the left over grass",
    "two blue stars and a large green square at night",
    "make it a striped yellow ring in the snow",
    "remove the checkered purple ring from the brick wall",
]


def clip_vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary in CLIP's order (256 bytes, 256 bytes that end a word, merges, start, end), and the merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = alphabet + [letter + "</w>" for letter in alphabet]
    words = Counter(word for caption in CAPTIONS for word in caption.split())
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while len(vocabulary) + 2 < size:
        pairs = Counter[tuple[str, str]]()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        vocabulary.append("".join(best))
        for word, parts in pieces.items():
            joined = []
            for part in parts:
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            pieces[word] = joined
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(vocabulary)}, merges


@pytest.fixture(scope="session")
def clip_words() -> Callable[[int], tuple[dict[str, int], list[tuple[str, str]]]]:
    """Builds the vocabulary and merges of a small CLIPTokenizer from its size."""
    return clip_vocabulary


@pytest.fixture(scope="session")
def clip_tokenizer() -> Callable[..., Any]:
    """Builds a small CLIPTokenizer of a given maximum length and vocabulary size."""

    def build(length: int = 16, size: int = 600, **kwargs: Any) -> Any:
        from transformers import CLIPTokenizer

        vocabulary, merges = clip_vocabulary(size)
        return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length, **kwargs)

    return build


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def two_images() -> torch.Tensor:
    """Two images 40 x 56, neither square nor symmetric, with values that convert exactly to bytes."""
    from emuedit.models import image_tensors

    y, x = np.mgrid[0:40, 0:56]
    first = np.stack([y * 6, x * 4, (x * y) % 256], axis=-1)
    second = np.stack([(x // 8 % 2) * 200, 255 - y * 6, x * 0 + 30], axis=-1)
    return image_tensors.from_uint8(np.stack([first, second]).astype(np.uint8))
