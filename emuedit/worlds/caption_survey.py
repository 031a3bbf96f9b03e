"""Count the captions of a source for `emuedit init`, and name what later stages will drop or refuse, before it costs anything."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emuedit import prompts
from emuedit.config import ParamsError
from emuedit.data import caption_sources, language
from emuedit.data.text_tables import BadRow
from emuedit.data.word_list import load_word_list
from emuedit.data_checks.check_bounds import CHECKS
from emuedit.stages.captions import CaptionsParams, normalize, reason_to_drop

MANY_ROWS = 10_000
"""Maximum number of rows to read if there are fewer, so that captions added later are read too."""
_MODERATION = Path(prompts.__file__).with_name("moderation.txt")
_SHOWN_WORDS = 5
_BAD_ROWS = {"not_utf8": "not UTF-8, save the file in UTF-8"}
"""Reason of a `BadRow` -> its meaning and what to do."""
_DROPS = {
    "too_long": (
        "captions.max_words: {n} of {read} captions have more than {params.max_words} words and will be dropped; shorten them, "
        "or raise it in params.yaml and run this again with --overwrite. Captions above CLIP's 77 tokens then cost requests to "
        "the LLM, and their instructions are dropped later as caption_too_long"
    ),
    "too_short": (
        "captions.min_words: {n} of {read} captions have fewer than {params.min_words} words and will be dropped; for a language "
        "without spaces between words, set it to 1 in params.yaml and run this again with --overwrite"
    ),
    "other_language": (
        "captions.languages: {n} of {read} captions are probably in none of {languages} and will be dropped; name their languages"
    ),
}
"""Reason of `captions.reason_to_drop` -> the note on it."""
_FEWEST_WORDS, _RELIABLE_WORDS, _SHORT_FACTOR = 3, 6, 0.2
"""Captions of fewer words are not tested, and those of fewer than six with a fifth of the probability: `a red car` is English
with probability 0.13, `ein rotes Auto` with 0.02. Ours."""
_MOST_IN_OTHER_LANGUAGES = CHECKS["other_language"].bound.fail or 0.0


@dataclass(frozen=True)
class CaptionRules:
    """What the stages `captions` and `validation` require of captions."""

    captions: CaptionsParams
    languages: Sequence[str]
    """`validation.languages`; empty: any."""

    @classmethod
    def read(cls, template: Mapping[str, Any], tuned: Mapping[str, Any]) -> "CaptionRules":
        """The rules of an earlier file, whose values are kept, or else of the template.

        template, tuned: sections of `params.yaml`. Invalid values are left to the check of the new file.
        """
        captions, validation = ({**template[name], **(tuned.get(name) or {})} for name in ("captions", "validation"))
        fixed = {"world": template["world"], "n_rows": MANY_ROWS}
        params = CaptionsParams.model_validate(template["captions"] | fixed)
        with suppress(ValidationError, TypeError):
            params = CaptionsParams.model_validate_json(json.dumps(captions | fixed))
        return cls(params, validation["languages"])


def count_captions(root: Path, name: str, column: str, n_captions: int | None, rules: CaptionRules) -> tuple[int, int, list[str]]:
    """(rows to read, usable captions, notes for the user) of the source `name` below `root`.

    n_captions: captions that the user wants; None: any number. Captions that the stage `captions` drops are counted in the first
    rows, except duplicates. Empty and unreadable rows are no captions. Raises ParamsError without any, CaptionSourceError for a
    file of another kind, and LanguageError for an unknown language.
    """
    source = root / name
    if not source.exists():
        raise ParamsError(f"want an existing file or folder of captions, got none at {source.resolve()}")
    caption_sources.check_kind(source)
    if source.suffix not in caption_sources.LIST_SUFFIXES:
        if source.is_dir():  # a column that it lacks is an error now, not in the first stage
            next(caption_sources.read_batches(source, name, "train", column, 1, 1), None)
        n_rows = max(MANY_ROWS, n_captions or 0)
        return n_rows, n_rows, [f"captions.n_rows: at most {n_rows} rows of {name} are read; change it as you like"]
    first, bad_rows = list[str](), Counter[str]()
    n_rows = n_texts = 0
    for start, rows in caption_sources.read_batches(source, name, "train", column, sys.maxsize, MANY_ROWS):
        texts = [normalize(row) for row in rows if isinstance(row, str) and row.strip()]
        bad_rows.update(row.reason for row in rows if isinstance(row, BadRow))
        first = first if start else texts
        n_rows, n_texts = n_rows + len(rows), n_texts + len(texts)
    notes = []
    if n_bad := bad_rows.total():
        named = ", ".join(f"{_BAD_ROWS.get(reason, reason)} ({n})" for reason, n in bad_rows.most_common())
        notes.append(f"{name}: {n_bad} of {n_rows} rows cannot be read and will be dropped: {named}")
    if not n_texts:
        raise ParamsError("; ".join([f"want one caption per line or row, got none in {source}", *notes]))
    usable, of_texts = _check_texts(first, f"the first {MANY_ROWS}" if n_rows > MANY_ROWS else str(n_texts), rules)
    n_usable = round(n_texts * len(usable) / max(1, len(first)))
    if n_captions and n_captions > n_usable:
        available = "all" if n_usable == n_texts else "all that are not dropped"
        notes.append(f"instructions.n_captions: {n_usable}, {available} of {name}; got --n-captions {n_captions}")
    return n_rows, n_usable, notes + of_texts


def _check_texts(texts: Sequence[str], read: str, rules: CaptionRules) -> tuple[list[str], list[str]]:
    """(the texts that the stage `captions` does not drop, notes on what it and later stages drop or refuse).

    read: the number of texts, as the notes name it.
    """
    reasons = [reason_to_drop(text, rules.captions) for text in texts]
    usable = [text for text, reason in zip(texts, reasons, strict=True) if reason is None]
    languages = ", ".join(rules.captions.languages)
    notes = [
        note.format(n=n, read=read, params=rules.captions, languages=languages)
        for reason, note in _DROPS.items()
        if (n := reasons.count(reason))
    ]
    if rules.languages:
        n_other = _count_other_languages(usable, rules.languages, rules.captions.min_language)
        if n_other > _MOST_IN_OTHER_LANGUAGES * len(usable):
            notes.append(
                f"validation.languages: {n_other} of {read} captions are probably in none of {', '.join(rules.languages)}; the "
                f"stage validation stops above a share of {_MOST_IN_OTHER_LANGUAGES:g} of the pairs, when all of them are made. "
                "Name their languages there, or in captions.languages those to keep"
            )
    word_list = load_word_list(_MODERATION)
    matches = Counter(match for text in texts if (match := word_list.first_match([text])))
    if n_matches := matches.total():
        words = ", ".join(f"{word} ({n})" for word, n in matches.most_common(_SHOWN_WORDS))
        drops = f"the default list drops {n_matches} of {read} captions: {words}"
        notes.append(f"instructions.moderation: {drops}; name a list of your own if they are wanted")
    return usable, notes


def _count_other_languages(texts: Sequence[str], languages: Sequence[str], min_probability: float) -> int:
    """How many texts are probably in other languages; the stage `validation` tests each with its instruction, which is longer."""
    n_words = [len(text.split()) for text in texts]
    bounds = [0.0 if n < _FEWEST_WORDS else min_probability * (_SHORT_FACTOR if n < _RELIABLE_WORDS else 1) for n in n_words]
    return sum(language.probability(text, languages) < bound for text, bound in zip(texts, bounds, strict=True))
