"""The toy world's tokenizer: a byte-level BPE in CLIP's own format, so that any text can be read, unseen words too."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from toyworld.scenes.caption_grammar import captions, vocabulary

VOCABULARY = Path(__file__).parent / "vocabulary"
N_TOKENS = 1024
CONTEXT = 48
START, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_EDITING_WORDS = (
    "make turn change replace remove add put place paint draw show find detect segment mark mask outline box delete "
    "erase take away get rid of swap with for into it its that this the everything picture image photo whole scene "
    "background behind colour color texture pattern style write letter text on card darker brighter lighter contrast "
    "saturation hue blur sharpen soft sharp depth map near far normal normals surface sketch lines drawing skeleton "
    "pose figure segmentation classes real realistic from to of set let there be now more less please could you all "
    "every object shape weather day clear another new instead as like where is are what give me create generate"
)


def build(folder: Path) -> CLIPTokenizer:
    """The tokenizer of all toy models, saved in `folder` as transformers saves it."""
    tokenizer = CLIPTokenizer(
        vocab=str(VOCABULARY / "vocab.json"), merges=str(VOCABULARY / "merges.txt"), model_max_length=CONTEXT
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def learn(folder: Path) -> None:
    """Learn `vocab.json` and `merges.txt` from captions. Merges of equal count fall differently from run to run, and models
    know their tokens by number: so the result is kept in git, and learning another one means training every model anew.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    room = N_TOKENS - 2 * len(alphabet) - 2
    trainer = trainers.BpeTrainer(vocab_size=N_TOKENS, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    lines = captions("train", 0, 4000) + [*vocabulary(), _EDITING_WORDS] * 50
    learner.train_from_iterator(lines, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:room]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
