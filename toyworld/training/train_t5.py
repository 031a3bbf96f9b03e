"""The toy T5: random weights in T5's format, with a tokenizer that contains the words of the toy world.

The model is not trained here. The router stage fine-tunes it, as it fine-tunes `google/flan-t5-*`. The toy language is so
small that no pretraining is needed.
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
MAX_TOKENS = 96
_WORD_SCORE, _PIECE_SCORE, _LETTER_SCORE = -8.0, -12.0, -16.0
"""Log-probabilities of the unigram model. A word in the vocabulary scores higher than the sequence of its letters."""
_SPACE = "▁"  # SentencePiece writes this for the space before a word


def list_words() -> list[str]:
    """Every word of captions and instructions, in lower case and sorted."""
    tables = [
        phrasings.LOCAL_COLOUR,
        phrasings.LOCAL_SHAPE,
        phrasings.REMOVE,
        phrasings.ADD,
        phrasings.TEXTURE,
        phrasings.BACKGROUND,
    ]
    tables += [phrasings.STYLE, phrasings.TEXT, phrasings.DETECT, phrasings.SEGMENT]
    table_groups = (
        phrasings.GLOBAL,
        phrasings.COLOR,
        phrasings.MAPS,
        phrasings.FROM_MAP,
        phrasings.HELD_OUT,
        phrasings.SHARED,
    )
    tables += [wordings for group in table_groups for wordings in group.values()]
    single_wordings = (phrasings.A_STYLE, phrasings.MAP_CAPTION, phrasings.ANNOTATED_CAPTION)
    texts: list[str] = [*vocabulary(), *BACKGROUNDS, *CONDITIONS, *STYLES]
    texts += [text for table in tables for text in table] + [text for table in single_wordings for text in table.values()]
    return sorted(set(_split(texts)))


def _split(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield from re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", text.lower()))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer (Kudo 2018, arXiv 1804.10959) of the toy world's words, and of letters for all other words.

    It ignores case. `T5Tokenizer` does not keep this property when it is saved and loaded, so only its backend is used.
    """
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(_SPACE + word, _WORD_SCORE) for word in list_words() if len(word) > 1]
    pieces += [(_SPACE, _LETTER_SCORE)] + [(letter, _LETTER_SCORE) for letter in letters]
    pieces += [(_SPACE + letter, _PIECE_SCORE) for letter in letters]
    backend = T5Tokenizer(vocab=pieces, extra_ids=0).backend_tokenizer
    backend.normalizer = Lowercase()
    special_tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=MAX_TOKENS, **special_tokens)


def build(n_tokens: int) -> T5ForConditionalGeneration:
    """A T5 with random weights from a fixed seed."""
    config = T5Config(
        vocab_size=n_tokens,
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=2 * WIDTH,
        num_layers=ENCODER_LAYERS,
        num_decoder_layers=DECODER_LAYERS,
        num_heads=HEADS,
        dropout_rate=0.0,  # takes a fifth of the time on a CPU and does not help in a few epochs
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_for("foundation", "t5") % 2**32)
        return T5ForConditionalGeneration(config).eval()


def run(scratch: Path) -> Path:
    """Build the model and the tokenizer and return the folder they are saved in."""
    folder = scratch / "model"
    tokenizer = build_tokenizer()
    build(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
