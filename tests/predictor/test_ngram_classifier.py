from collections import Counter
from pathlib import Path

import pytest
import torch

from emuedit.predictor import ngram_classifier
from emuedit.predictor.ngram_classifier import NgramClassifier, ngrams
from emuedit.runtime import rng

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


def test_a_small_class_is_complete_in_the_sample_of_a_large_training_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_classifier, "MAX_TEXTS", 200)
    large, small = [f"make star {number}" for number in range(3000)], [f"q{number}" for number in range(30)]
    sampled = NgramClassifier.fit([*large, *small], [0] * 3000 + [1] * 30, 2)
    assert all(f" {text} "[:5] in sampled.vocabulary for text in small)
    assert sampled.logits(["q7", "make star 7"]).argmax(-1).tolist() == [1, 0]


def test_classes_share_what_smaller_classes_leave() -> None:
    labels = [0] * 500 + [1] * 10 + [2] * 60 + [3] * 400
    rows = ngram_classifier.sample_rows(labels, 201)
    assert len(set(rows)) == len(rows) == 201
    assert sorted(Counter(labels[row] for row in rows).items()) == [(0, 66), (1, 10), (2, 60), (3, 65)]
    assert rows == ngram_classifier.sample_rows(labels, 201)


def test_a_training_set_that_is_not_too_large_is_used_in_the_same_order_as_ever() -> None:
    labels = [0] * 150 + [1] * 50
    assert ngram_classifier.sample_rows(labels, 200) == rng("ngrams").permutation(200).tolist()


def test_logits_are_equal_whatever_the_number_of_texts_per_pass(
    classifier: NgramClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS, "", "ξψζ", "removing it"]
    together = classifier.logits(texts)
    sizes = []
    linear = ngram_classifier._linear
    monkeypatch.setattr(ngram_classifier, "TEXTS_PER_PASS", 4)
    monkeypatch.setattr(
        ngram_classifier, "_linear", lambda features, *parameters: sizes.append(len(features[1])) or linear(features, *parameters)
    )
    torch.testing.assert_close(classifier.logits(texts), together)
    assert sizes == [4, 4, 1]
