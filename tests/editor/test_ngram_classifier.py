from pathlib import Path

import pytest
import torch

from emuedit.editor import ngram_classifier
from emuedit.editor.ngram_classifier import NgramClassifier, ngrams

TEXTS = ["remove the star", "remove the ring", "delete the star", "sketch the ring", "draw the star", "draw the ring"]
LABELS = [0, 0, 0, 1, 1, 1]


@pytest.fixture(scope="module")
def classifier() -> NgramClassifier:
    return NgramClassifier.fit(TEXTS, LABELS, 3)


def test_n_grams_stay_inside_words_and_know_where_a_word_begins() -> None:
    assert ngrams("At a") == [" a", "at", "t ", " at", "at ", " at ", " a", "a ", " a "]
    assert ngrams(" ") == []


def test_a_part_of_a_known_word_decides(classifier: NgramClassifier) -> None:
    p = classifier.logits(["removing it", "DRAWING", "deleted"]).softmax(-1)
    assert p.argmax(-1).tolist() == [0, 1, 0]
    assert p[:, 2].max() < 0.1, "a class without texts"
    torch.testing.assert_close(classifier.logits(TEXTS).argmax(-1), torch.tensor(LABELS))


def test_unknown_n_grams_are_ignored(classifier: NgramClassifier) -> None:
    plain, more, nothing, empty = classifier.logits(["draw", "draw ξψζ", "ξψζ", ""])
    torch.testing.assert_close(more, plain)
    torch.testing.assert_close(nothing, classifier.bias)
    torch.testing.assert_close(empty, classifier.bias)
    assert classifier.logits([]).shape == (0, 3)


def test_word_order_and_other_texts_of_the_batch_change_nothing(classifier: NgramClassifier) -> None:
    together = classifier.logits(["draw the star", "star the draw", "delete"])
    torch.testing.assert_close(together[0], together[1])
    torch.testing.assert_close(together[2:], classifier.logits(["delete"]))


def test_a_saved_classifier_gives_the_same_logits(classifier: NgramClassifier, tmp_path: Path) -> None:
    assert ngram_classifier.load(tmp_path) is None
    classifier.save(tmp_path)
    loaded = ngram_classifier.load(tmp_path)
    assert loaded is not None
    assert torch.equal(loaded.logits(TEXTS), classifier.logits(TEXTS))


def test_a_large_training_set_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_classifier, "MAX_TEXTS", 3)
    sampled = NgramClassifier.fit([letter * 2 for letter in "abcdef"], LABELS, 2)
    assert sum(letter * 2 in sampled.vocabulary for letter in "abcdef") == 3
