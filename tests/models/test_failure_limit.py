import pytest

from emuedit.models.failure_limit import WINDOW, FailureLimit
from emuedit.models.language_model import LLMError


def test_a_caption_counts_once_however_many_of_its_questions_fail() -> None:
    limit = FailureLimit(0.01)
    limit.start_caption()
    for _ in range(13):
        limit.count(LLMError("odd"))
    limit.start_caption()
    with pytest.raises(LLMError, match=r"at most 1 of 100 captions .* got 2 of 2; .*: down") as error:
        limit.count(LLMError("down"))
    assert str(error.value.__cause__) == "down", "its kind is read from its causes"


def test_failures_that_are_far_apart_do_not_add_up() -> None:
    limit = FailureLimit(0.01)
    for _ in range(5):
        limit.start_caption()
        limit.count(LLMError("odd"))
        for _ in range(WINDOW - 1):
            limit.start_caption()
    limit.start_caption()
    limit.count(LLMError("odd"))
    limit.start_caption()
    with pytest.raises(LLMError, match=f"got 2 of {WINDOW}"):
        limit.count(LLMError("odd"))


def test_without_a_share_the_first_failure_stops_and_with_all_of_it_none_does() -> None:
    for share, stops in ((0.0, True), (1.0, False)):
        limit = FailureLimit(share)
        for _ in range(1 if stops else WINDOW + 1):
            limit.start_caption()
            if stops:
                with pytest.raises(LLMError, match="at most 0 of 100"):
                    limit.count(LLMError("down"))
            else:
                limit.count(LLMError("down"))
