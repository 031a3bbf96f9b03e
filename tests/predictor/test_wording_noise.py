import re

import numpy as np

from emuedit.predictor.wording_noise import WordingNoise, gibberish, mistype, vary

TEXT = "make the red star green again on the grass"


def silent(**changes: float) -> WordingNoise:
    """No noise but that of the changes."""
    return WordingNoise(**{"typo_share": 0, "drop_share": 0, "courtesy_share": 0} | changes)


def test_without_noise_a_text_stays_as_it_is() -> None:
    assert vary(TEXT, silent(), np.random.default_rng(0)) == TEXT


def test_each_kind_of_noise_does_what_it_says() -> None:
    random = np.random.default_rng(0)
    polite = silent(courtesy_share=1)
    assert all(TEXT in vary(TEXT, polite, random) and len(vary(TEXT, polite, random)) > len(TEXT) for _ in range(20))
    lossy = silent(drop_share=0.3)
    lengths = [len(vary(TEXT, lossy, random).split()) for _ in range(400)]
    assert 0.65 < np.mean(lengths) / len(TEXT.split()) < 0.75
    assert all(vary("remove it", lossy, random) == "remove it" for _ in range(20))
    careless = silent(typo_share=1)
    words = vary(TEXT, careless, random).split()
    assert [word for word in words if len(word) < 4 and word in TEXT.split()]  # short words are spared
    assert sum(a != b for a, b in zip(words, TEXT.split(), strict=True)) >= 3


def test_a_mistyped_word_has_one_error() -> None:
    random = np.random.default_rng(0)
    assert {mistype("star", random) for _ in range(200)} == {
        "tar", "sar", "str", "sstar", "sttar", "staar", "tsar", "satr", "stra",
    }  # fmt: skip
    assert mistype("the", random) == "the"


def test_gibberish_is_words_of_letters() -> None:
    random = np.random.default_rng(0)
    texts = [gibberish(random) for _ in range(50)]
    assert all(re.fullmatch(r"[a-z]{2,8}( [a-z]{2,8}){0,3}", text) for text in texts)
    assert len(set(texts)) == 50
