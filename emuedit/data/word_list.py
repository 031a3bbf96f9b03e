"""Lists of words and phrases to find in texts: what moderation excludes, and slices of an evaluation."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WordList:
    """Matches complete words and phrases; case is ignored."""

    pattern: re.Pattern[str] | None
    """None for an empty list."""

    def first_match(self, texts: Iterable[str]) -> str | None:
        """The first listed word or phrase in any of the texts, or None."""
        if self.pattern is None:
            return None
        return next((match.group().casefold() for text in texts if (match := self.pattern.search(text))), None)


def load_word_list(path: str | Path) -> WordList:
    """Load a .txt file with one entry a line; empty lines and lines that start with '#' are ignored.

    Raises ValueError for a missing file and for other suffixes.
    """
    path = Path(path)
    if path.suffix != ".txt" or not path.is_file():
        raise ValueError(f"want a word list, an existing .txt file, got {path}; correct the name in params.yaml")
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    entries = {" ".join(line.split()) for line in lines if line and not line.startswith("#")}
    longest_first = sorted(entries, key=lambda entry: (-len(entry), entry))
    alternatives = "|".join(re.escape(entry).replace(r"\ ", r"\s+") for entry in longest_first)
    return WordList(re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE) if entries else None)
