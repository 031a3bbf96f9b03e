"""Texts nobody should paint: a list of words, one or several a line, kept as a file that a person can edit."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WordList:
    """Objects to whole words and phrases, whatever their case."""

    pattern: re.Pattern[str] | None

    def objection(self, texts: Iterable[str]) -> str | None:
        """The first forbidden word in any of the texts, or None."""
        if self.pattern is None:
            return None
        return next((found.group().casefold() for text in texts if (found := self.pattern.search(text))), None)


def load(path: str | Path) -> WordList:
    """A word list from a .txt file; empty lines and lines that start with '#' say nothing. ValueError for other files."""
    path = Path(path)
    if path.suffix != ".txt" or not path.is_file():
        raise ValueError(f"want a word list, an existing .txt file, got {path}; set instructions.moderation in params.yaml")
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    words = sorted(
        {" ".join(line.split()) for line in lines if line and not line.startswith("#")}, key=lambda word: (-len(word), word)
    )
    phrases = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in words)
    return WordList(re.compile(rf"(?<!\w)(?:{phrases})(?!\w)", re.IGNORECASE) if words else None)
