from pathlib import Path

import pytest

from emuedit.data.atomic_file import link_or_copy, replacing


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


def test_an_error_of_writing_gets_the_name_of_the_file(tmp_path: Path) -> None:
    def fail() -> None:
        with replacing(tmp_path / "table.json"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*/table.json'"):
        fail()


def test_a_link_stays_one_and_a_device_is_written_itself(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text("earlier")
    (tmp_path / "link.json").symlink_to("file.json")
    with replacing(tmp_path / "link.json") as partial:
        partial.write_text("new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "file.json").read_text() == "new"
    with replacing(Path("/dev/null")) as path:
        assert path == Path("/dev/null")


def test_writers_of_the_same_path_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    with replacing(path, 1) as first, replacing(path, 2) as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert path.read_text() == "1"


def test_a_link_has_the_bytes_of_the_file_that_a_symbolic_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("content")
    (tmp_path / "link.txt").symlink_to("file.txt")
    link_or_copy(tmp_path / "link.txt", tmp_path / "new.txt")
    assert not (tmp_path / "new.txt").is_symlink()
    assert (tmp_path / "new.txt").samefile(tmp_path / "file.txt")


def test_where_there_are_no_hard_links_a_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    (tmp_path / "file.txt").write_text("content")
    link_or_copy(str(tmp_path / "file.txt"), str(tmp_path / "new.txt"))
    assert (tmp_path / "new.txt").read_text() == "content"
    assert not (tmp_path / "new.txt").samefile(tmp_path / "file.txt")
