import pytest

from emuedit.tasks import HELD_OUT, TASKS, UnknownTaskError, get_task


def test_indices_are_the_rows_of_the_task_table() -> None:
    assert [one.index for one in TASKS] == list(range(16))


def test_order_never_changes() -> None:
    assert " ".join(one.name for one in TASKS) == (
        "local remove add texture background global style text detect segment color depth sketch normal pose segmap"
    )
    assert [sum(one.family == family for one in TASKS) for family in ("region", "free-form", "vision")] == [5, 3, 8]


def test_held_out_tasks_have_no_row() -> None:
    assert [one.name for one in HELD_OUT] == ["superres", "contour", "inpaint", "add_detect"]
    assert {one.index for one in HELD_OUT} == {None}


def test_names_are_distinct_and_found() -> None:
    everything = TASKS + HELD_OUT
    assert len({one.name for one in everything}) == 20
    assert all(task(one.name) is one and one.description for one in everything)


def test_unknown_name_lists_the_known_and_guesses() -> None:
    with pytest.raises(UnknownTaskError, match=r"local, remove.*add_detect; got 'segmnt'; did you mean 'segment'\?"):
        get_task("segmnt")
