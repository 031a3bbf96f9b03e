"""Texts to tokens, by the toy base model's tokenizer."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import nn
from transformers import CLIPTokenizer

from emuedit.models.text_encoding import TextEncoding

FOLDER = Path(__file__).parents[2] / "toyworld/weights/base_model/tokenizer"


@pytest.mark.slow
def test_two_threads_tokenize_as_one_does() -> None:
    """A training prepares batches in a thread, while the main one evaluates; a tokenizer keeps padding as a state."""
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER)
    texts = [" ".join(["a red star"] * (1 + number % 9)) + f" {number}" for number in range(600)]
    together = TextEncoding([tokenizer], [])
    with ThreadPoolExecutor(4) as threads:
        lengths = {tokens[0].ids.shape[1] for tokens in threads.map(lambda text: together.tokenize([text]), texts)}
    assert lengths == {tokenizer.model_max_length}


def test_the_encoders_are_freed_with_their_last_user() -> None:
    """Not only when Python collects reference cycles: that may be minutes and the memory of another model later."""
    encoder = nn.Linear(1, 1)
    encoding, is_alive = TextEncoding([CLIPTokenizer.from_pretrained(FOLDER)], [encoder]), weakref.ref(encoder)
    encoding.tokenize(["a red star"])
    gc.disable()
    try:
        del encoder, encoding
        assert is_alive() is None
    finally:
        gc.enable()
