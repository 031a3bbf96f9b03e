from pathlib import Path

import pytest

from emuedit.data.atomic_file import replacing


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("earlier")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "earlier"
        assert (partial.parent, partial.suffix, partial.name[0]) == (tmp_path, ".json", ".")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("earlier")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("ha")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_the_same_path_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    with replacing(path, 1) as first, replacing(path, 2) as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert path.read_text() == "1"
