"""Lists of words to find in texts."""

from pathlib import Path

import pytest

from emuedit.data.word_list import load_word_list


def test_the_word_list_matches_complete_words(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("# a comment\n\ngore\ndead body\n")
    words = load_word_list(tmp_path / "w.txt")
    assert words.first_match(["Al Gorey at sea", "a deadly body"]) is None
    assert words.first_match(["fine", "GORE everywhere"]) == "gore"
    assert words.first_match(["a dead  body"]) == "dead  body"
    (tmp_path / "w.txt").write_text("")
    assert load_word_list(tmp_path / "w.txt").first_match(["gore"]) is None
    with pytest.raises(ValueError, match=r"want a word list, an existing \.txt file"):
        load_word_list(tmp_path / "absent.txt")
