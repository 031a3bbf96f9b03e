"""Lists of names in messages."""

import pytest

from emuedit.data.name_list import first_names


@pytest.mark.parametrize(("names", "line"), [("", ""), ("a", "a"), ("abc", "a, b, c"), ("abcd", "a, b, c and 1 more")])
def test_a_list_of_names_says_how_many_are_not_shown(names: str, line: str) -> None:
    assert first_names(list(names), 3) == line
