"""Augmentation of instructions: typing errors, omitted words, polite phrases.

Used to train the task predictor. The shares are ours. The phrases are English: set their share to 0 for another language.
"""

import string

import numpy as np
from pydantic import Field

from emuedit import config

_OPENINGS = ("please", "can you", "could you please", "would you", "i want you to", "hi,", "just", "pls", "now")
_CLOSINGS = ("please", "thanks", "pls", "for me", "if possible")
_MARKS = ("", "", ".", "?", "!")
_MIN_LETTERS = 4


class WordingNoise(config.Params):
    """Amount of augmentation each time an instruction is used."""

    typo_share: float = Field(0.03, ge=0, le=1)
    """Share of the words of four letters or more with a typing error."""
    drop_share: float = Field(0.1, ge=0, lt=1)
    """Share of omitted words; texts of two words are not shortened."""
    courtesy_share: float = Field(0.2, ge=0, le=1)
    """Share of texts with an opening such as "could you please", and share with a closing such as "thanks"."""


def vary(text: str, noise: WordingNoise, random: np.random.Generator) -> str:
    """An augmented copy of the text."""
    words = text.split()
    words = [mistype(word, random) if random.random() < noise.typo_share else word for word in words]
    if len(words) > 2:
        words = [word for word in words if random.random() >= noise.drop_share] or words[:1]
    if random.random() < noise.courtesy_share:
        words = [_OPENINGS[random.integers(len(_OPENINGS))], *words]
    if words and random.random() < noise.courtesy_share:
        words[-1] = words[-1].rstrip("?.!")
        words = [*words, _CLOSINGS[random.integers(len(_CLOSINGS))] + _MARKS[random.integers(len(_MARKS))]]
    return " ".join(words)


def mistype(word: str, random: np.random.Generator) -> str:
    """A word with a letter missing, doubled, or swapped with the next; short words are unchanged."""
    if len(word) < _MIN_LETTERS:
        return word
    i = int(random.integers(len(word) - 1))
    return (
        word[:i] + word[i + 1 :],
        word[: i + 1] + word[i:],
        word[:i] + word[i + 1] + word[i] + word[i + 2 :],
    )[random.integers(3)]


def gibberish(random: np.random.Generator) -> str:
    """One to four words of two to eight random letters."""
    letters = np.array(list(string.ascii_lowercase))
    return " ".join("".join(random.choice(letters, random.integers(2, 9))) for _ in range(random.integers(1, 5)))
