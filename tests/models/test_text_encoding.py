"""Texts to tokens, by the toy base model's tokenizer."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
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
