"""The toy world's T5: random weights in T5's own format, with a tokenizer that knows the words of the toy world.

It is not trained here. The router is fine-tuned from it, as it is from `google/flan-t5-*`; what there is to know of a language
this small, it learns on the way.
"""

import re
import string
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers.normalizers import Lowercase
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, T5Tokenizer

from emuedit.runtime import seed_for
from toyworld.edits import phrasings
from toyworld.scenes.caption_grammar import vocabulary
from toyworld.scenes.palette import BACKGROUNDS, CONDITIONS, STYLES

WIDTH, HEADS, ENCODER_LAYERS, DECODER_LAYERS = 64, 4, 2, 1
LONGEST = 96  # tokens
_WORD_SCORE, _PIECE_SCORE, _LETTER_SCORE = -8.0, -12.0, -16.0  # log-probabilities: a known word wins over its letters
_MARK = "▁"  # what SentencePiece writes for the space before a word


def words() -> list[str]:
    """Every word of captions and instructions, in lower case, in a fixed order."""
    tables = [
        phrasings.LOCAL_COLOUR,
        phrasings.LOCAL_SHAPE,
        phrasings.REMOVE,
        phrasings.ADD,
        phrasings.TEXTURE,
        phrasings.BACKGROUND,
    ]
    tables += [phrasings.STYLE, phrasings.TEXT, phrasings.DETECT, phrasings.SEGMENT]
    named = (phrasings.GLOBAL, phrasings.COLOR, phrasings.MAPS, phrasings.FROM_MAP, phrasings.HELD_OUT, phrasings.SHARED)
    tables += [wordings for table in named for wordings in table.values()]
    single = (phrasings.A_STYLE, phrasings.MAP_OF, phrasings.MARKED)
    texts: list[str] = [*vocabulary(), *BACKGROUNDS, *CONDITIONS, *STYLES]
    texts += [text for table in tables for text in table] + [text for table in single for text in table.values()]
    return sorted(set(_split(texts)))


def _split(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield from re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", text.lower()))


def tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer (Kudo 2018, arXiv 1804.10959) of the known words, and of letters for all others. Case counts not.

    `T5Tokenizer` would forget on loading that it ignores case, so only its parts are taken.
    """
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(_MARK + word, _WORD_SCORE) for word in words() if len(word) > 1]
    pieces += [(_MARK, _LETTER_SCORE)] + [(letter, _LETTER_SCORE) for letter in letters]
    pieces += [(_MARK + letter, _PIECE_SCORE) for letter in letters]
    parts = T5Tokenizer(vocab=pieces, extra_ids=0).backend_tokenizer
    parts.normalizer = Lowercase()
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=parts, model_max_length=LONGEST, **marks)


def build(n_tokens: int) -> T5ForConditionalGeneration:
    """Random weights, the same every time."""
    config = T5Config(
        vocab_size=n_tokens,
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=2 * WIDTH,
        num_layers=ENCODER_LAYERS,
        num_decoder_layers=DECODER_LAYERS,
        num_heads=HEADS,
        dropout_rate=0.0,  # a fifth of the time on a CPU, and nothing gained in the few passes over its instructions
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_for("foundation", "t5") % 2**32)
        return T5ForConditionalGeneration(config).eval()


def run(scratch: Path) -> Path:
    """Make it and return the folder it was saved in."""
    made = tokenizer()
    build(len(made)).save_pretrained(scratch / "model")
    made.save_pretrained(scratch / "model")
    return scratch / "model"
