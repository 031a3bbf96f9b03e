"""The toy T5: an untrained T5 in T5's format, with a tokenizer for the toy world's words, word parts and letters.

The model is not trained here. The router stage fine-tunes it like `google/flan-t5-*`. The initialisation must replace
pretraining: words are split into stem and ending, so that "brighter" and "brighten" share a token, embeddings are small and
residual branches start at zero, so that it first learns the meaning of words and then of combinations. With T5's default
initialisation it memorises whole instructions instead.
"""

import re
import string
from collections import Counter
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
EMBEDDING_STD = 0.05
"""Standard deviation of the embeddings; T5's default is 1, which Adam barely changes in a few hundred steps."""
_WORD_SCORE, _STEM_SCORE, _PIECE_SCORE, _LETTER_SCORE = -8.0, -9.5, -10.0, -16.0
"""Log-probabilities of the unigram model: words score higher than stem and ending, which score higher than letters."""
_FIRST_LETTER_SCORE = -12.0
_SPACE = "▁"  # SentencePiece's symbol for the space before a word
ENDINGS = (
    "s", "es", "ed", "d", "ing", "er", "est", "r", "st", "y", "ly", "ish", "ness", "ion", "ation", "en", "al", "ful", "ize",
    "ise", "able", "ment", "ist", "ier", "ies", "iness", "less", "ened", "ening",
)  # fmt: skip
MIN_STEM = 3
"""Minimum number of letters of a stem."""


def list_words() -> list[str]:
    """Every word of captions and of the instructions of the training data, in lower case and sorted."""
    table = phrasings.template_table("training")
    single_wordings = (phrasings.A_STYLE, phrasings.MAP_CAPTION, phrasings.ANNOTATED_CAPTION)
    texts: list[str] = [*vocabulary(), *BACKGROUNDS, *CONDITIONS, *STYLES]
    texts += [text for templates in (*table.by_case.values(), *table.shared.values()) for text in templates]
    texts += [text for templates in phrasings.HELD_OUT.values() for text in templates]
    texts += [text for wordings in single_wordings for text in wordings.values()]
    return sorted(set(_split(texts)))


def stem(word: str) -> str:
    """A word without its longest ending; the word itself if fewer than `MIN_STEM` letters would remain."""
    endings = [ending for ending in ENDINGS if word.endswith(ending) and len(word) - len(ending) >= MIN_STEM]
    return word[: -max(map(len, endings))] if endings else word


def _split(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield from re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", text.lower()))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer (Kudo 2018, arXiv 1804.10959) of stems and endings, and of letters for all other words.

    A word is one token if no other word has its stem. Case is ignored. `T5Tokenizer` loses this property when
    it is saved and loaded, so only its backend is used.
    """
    words = [word for word in list_words() if len(word) > 1]
    stems = Counter(stem(word) for word in words)
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    scores: dict[str, float] = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0}
    scores |= {_SPACE + word: _WORD_SCORE for word in words if stems[stem(word)] == 1}
    for part in sorted(stems):
        scores.setdefault(_SPACE + part, _STEM_SCORE)
    scores |= dict.fromkeys(ENDINGS, _PIECE_SCORE)
    scores[_SPACE] = _LETTER_SCORE
    for letter in letters:
        scores.setdefault(letter, _LETTER_SCORE)
        scores.setdefault(_SPACE + letter, _FIRST_LETTER_SCORE)
    backend = T5Tokenizer(vocab=list(scores.items()), extra_ids=0).backend_tokenizer
    backend.normalizer = Lowercase()
    special_tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=MAX_TOKENS, **special_tokens)


def build(n_tokens: int) -> T5ForConditionalGeneration:
    """A T5 with weights from a fixed seed: small embeddings, and residual branches initialised to zero."""
    config = T5Config(
        vocab_size=n_tokens,
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=2 * WIDTH,
        num_layers=ENCODER_LAYERS,
        num_decoder_layers=DECODER_LAYERS,
        num_heads=HEADS,
        dropout_rate=0.0,  # dropout takes a fifth of the time on a CPU and does not help in a few epochs
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_for("foundation", "t5") % 2**32)
        model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.shared.weight.mul_(EMBEDDING_STD)
        for name, weight in model.named_parameters():
            if name.endswith(("SelfAttention.o.weight", "DenseReluDense.wo.weight")):
                weight.zero_()
    return model


def run(scratch: Path) -> Path:
    """Build the model and the tokenizer and return the folder they are saved in."""
    folder = scratch / "model"
    tokenizer = build_tokenizer()
    build(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
