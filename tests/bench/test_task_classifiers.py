"""The probabilities of the baselines of the task predictor."""

from collections.abc import Callable
from types import ModuleType

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from emuedit.predictor.task_predictor import NO_EDIT

Load = Callable[[str], ModuleType]
TEXTS = [
    ("add a star", "add"), ("add a heart", "add"), ("remove the star", "remove"), ("remove the heart", "remove"),
    ("hello there", NO_EDIT), ("good morning", NO_EDIT),
]  # fmt: skip


@pytest.mark.slow
def test_the_probability_is_conditional_on_an_instruction(load_script: Load) -> None:
    guess = load_script("harness.task_classifiers").logistic_regression(TfidfVectorizer(), TEXTS)
    accepted, refused = guess(["add hello", "good morning"])
    assert (accepted.task, accepted.refused, refused.refused) == ("add", False, True)
    assert accepted.probability > 0.9, "of all classes, it has 0.56"
    assert refused.probability < 0.1, "a share of all classes"
