"""The tokenizer of the toy models: a byte-level BPE in CLIP's format, which can encode any text."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from toyworld.scenes.caption_grammar import captions, vocabulary

VOCABULARY = Path(__file__).parent / "vocabulary"
N_TOKENS = 1024
CONTEXT = 48
START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_EDITING_WORDS = (
    "make turn change replace remove add put place paint draw show find detect segment mark mask outline box delete "
    "erase take away get rid of swap with for into it its that this the everything picture image photo whole scene "
    "background behind colour color texture pattern style write letter text on card darker brighter lighter contrast "
    "saturation hue blur sharpen soft sharp depth map near far normal normals surface sketch lines drawing skeleton "
    "pose figure segmentation classes real realistic from to of set let there be now more less please could you all "
    "every object shape weather day clear another new instead as like where is are what give me create generate"
)


def build(folder: Path) -> CLIPTokenizer:
    """The tokenizer of all toy models, from the committed vocabulary; also written to `folder` for transformers."""
    tokenizer = CLIPTokenizer(
        vocab=str(VOCABULARY / "vocab.json"), merges=str(VOCABULARY / "merges.txt"), model_max_length=CONTEXT
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def train_vocabulary(folder: Path) -> None:
    """Train the BPE on captions and write `vocab.json` and `merges.txt` to `folder`.

    The result is not reproducible: the order of merges with equal counts differs from run to run. Models depend on the
    token ids, so the vocabulary is committed to git; a new one requires retraining all models.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD_PATTERN), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    max_merges = N_TOKENS - 2 * len(alphabet) - 2
    trainer = trainers.BpeTrainer(vocab_size=N_TOKENS, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    lines = captions("train", 0, 4000) + [*vocabulary(), _EDITING_WORDS] * 50
    bpe.train_from_iterator(lines, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]][:max_merges]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
