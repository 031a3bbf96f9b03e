"""Shards of an interrupted run are found again by the next run with the same key, and the result has the same bytes."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emuedit.data import file_hashes
from emuedit.data import publish as publish_module
from emuedit.data.publish import Summary, publish, read_folder, read_summary, resumable_shards, scratch_folder
from emuedit.data.records import Caption, Drop
from emuedit.data.shards import ShardError, read_shard

N_SHARDS = 4


def make_shard(number: int) -> tuple[list[Caption], list[Drop]]:
    """Two captions and one drop."""
    captions = [Caption(f"caption {number}.{row}", "c.txt", 2 * number + row) for row in range(2)]
    return captions, [Drop(f"drop {number}", "empty", "c.txt", number)]


def make_and_publish(root: Path, key: str, made_numbers: list[int] | None = None) -> Summary:
    """A stage of four shards; `made_numbers` gets those that are made, and not resumed."""

    def make(number: int) -> tuple[list[Caption], list[Drop]]:
        if made_numbers is not None:
            made_numbers.append(number)
        return make_shard(number)

    scratch = scratch_folder(root, "captions", key)
    counts = {"kept": 0, "dropped": 0}
    for shard in resumable_shards(scratch, range(N_SHARDS), make, Caption):
        assert (shard.records, shard.drops) == make_shard(shard.source)
        counts = {"kept": counts["kept"] + len(shard.records), "dropped": counts["dropped"] + len(shard.drops)}
    return publish(scratch, root / "data/captions", "captions", {"key": key}, counts)


def read_bytes(root: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((root / "data/captions").iterdir())}


class StopRun(BaseException):
    """Interrupts a run of this process."""


def stop_before(number: int) -> Iterator[int]:
    for source in range(N_SHARDS):
        if source == number:
            raise StopRun
        yield source


def interrupt_before(root: Path, key: str, number: int) -> None:
    """Leave the shards before `number` in scratch."""
    with pytest.raises(StopRun):
        list(resumable_shards(scratch_folder(root, "captions", key), stop_before(number), make_shard, Caption))


@pytest.mark.parametrize("number", range(N_SHARDS))
def test_an_interruption_after_any_shard_does_not_change_the_bytes(number: int, tmp_path: Path) -> None:
    make_and_publish(tmp_path / "uninterrupted", "key")
    interrupt_before(tmp_path / "stopped", "key", number)
    made_numbers: list[int] = []
    make_and_publish(tmp_path / "stopped", "key", made_numbers=made_numbers)
    assert made_numbers == list(range(number, N_SHARDS))
    assert read_bytes(tmp_path / "stopped") == read_bytes(tmp_path / "uninterrupted")


def test_shards_of_another_key_are_not_used_and_are_deleted_at_the_end(tmp_path: Path) -> None:
    interrupt_before(tmp_path, "first", 3)
    made_numbers: list[int] = []
    make_and_publish(tmp_path, "second", made_numbers=made_numbers)
    assert made_numbers == [0, 1, 2, 3]
    assert not (tmp_path / "scratch/captions").exists()
    assert read_summary(tmp_path / "data/captions").params == {"key": "second"}


def test_equal_results_of_different_work_have_the_same_bytes(tmp_path: Path) -> None:
    """Or a caption that is not used would change what `pairs` depends on."""
    files = {}
    for name, key, counts in (("first", "a", {"kept": 8}), ("second", "b", {"kept": 8}), ("third", "a", {"kept": 9})):
        scratch = scratch_folder(tmp_path / name, "captions", key)
        list(resumable_shards(scratch, range(N_SHARDS), make_shard, Caption))
        publish(scratch, tmp_path / name / "data/captions", "captions", {"n": 1}, counts)
        files[name] = read_bytes(tmp_path / name)
    assert files["first"] == files["second"]
    keys = {name: read_summary(tmp_path / name / "data/captions").key for name in files}
    assert keys["first"] == keys["second"] != keys["third"]


def test_two_keys_are_kept_apart_until_one_is_published(tmp_path: Path) -> None:
    interrupt_before(tmp_path, "first", 3)
    interrupt_before(tmp_path, "second", 1)
    made_numbers: list[int] = []
    make_and_publish(tmp_path, "first", made_numbers=made_numbers)
    assert made_numbers == [3]


def test_unfinished_work_that_is_not_continued_is_reported_with_what_changed(tmp_path: Path, capsys: Any) -> None:
    """Three days of training would otherwise begin again without a word, and be deleted."""
    params = {"steps": 10, "weights": {"a": 1.0}}
    for _ in range(2):
        scratch_folder(tmp_path, "train", "first", params)
    assert not capsys.readouterr().out
    scratch_folder(tmp_path, "train", "second", params | {"weights": {"a": 2.0}, "seed": 1})
    assert "train/first is not continued, because seed, weights changed; to go on with it" in capsys.readouterr().out
    scratch = scratch_folder(tmp_path, "train", "third", params)
    printed = capsys.readouterr().out
    assert "train/first is not continued, because its code or input changed" in printed
    assert "train/second is not continued, because seed, weights changed" in printed
    (scratch / "stats").touch()
    publish(scratch, tmp_path / "out", "train", params, {})
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["stats", "summary.json"]


def test_what_a_kill_leaves_of_an_unfinished_shard_is_made_again(tmp_path: Path) -> None:
    make_and_publish(tmp_path / "uninterrupted", "key")
    interrupt_before(tmp_path / "stopped", "key", 2)
    scratch = tmp_path / "stopped/scratch/captions/key"
    (scratch / ".shard-00002.123.part.parquet").write_bytes(b"half")
    (scratch / "shard-00001.parquet").unlink()  # its drops are written first
    made_numbers: list[int] = []
    make_and_publish(tmp_path / "stopped", "key", made_numbers=made_numbers)
    assert made_numbers == [1, 2, 3]
    assert read_bytes(tmp_path / "stopped") == read_bytes(tmp_path / "uninterrupted")


def test_a_shard_is_written_after_its_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(publish_module, "write_shard", lambda path, *_: written.append(path.name))
    publish_module.write_with_drops(tmp_path / "shard-00007.parquet", [], [], Caption)
    assert written == ["dropped-00007.parquet", "shard-00007.parquet"]


def test_a_shard_says_whether_an_earlier_run_had_made_it(tmp_path: Path) -> None:
    interrupt_before(tmp_path, "key", 2)
    scratch = scratch_folder(tmp_path, "captions", "key")
    resumed = [shard.resumed for shard in resumable_shards(scratch, range(N_SHARDS), make_shard, Caption)]
    assert resumed == [True, True, False, False]


def test_an_interruption_while_publishing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_and_publish(tmp_path / "uninterrupted", "key")
    out = tmp_path / "stopped/data/captions"

    def interrupted_summary(*_: Any) -> Summary:
        raise StopRun

    with monkeypatch.context() as patch:
        patch.setattr(publish_module, "write_summary", interrupted_summary)
        with pytest.raises(StopRun):
            make_and_publish(tmp_path / "stopped", "key")
    assert list(out.iterdir())
    with pytest.raises(ShardError, match=r"want a published folder with summary\.json, got none"):
        list(read_folder(out, Caption))
    made_numbers: list[int] = []
    make_and_publish(tmp_path / "stopped", "key", made_numbers=made_numbers)
    assert made_numbers == []
    assert read_bytes(tmp_path / "stopped") == read_bytes(tmp_path / "uninterrupted")


def test_publishing_replaces_what_was_there(tmp_path: Path) -> None:
    make_and_publish(tmp_path, "first")
    (tmp_path / "data/captions/shard-00099.parquet").write_bytes(b"of an earlier run")
    make_and_publish(tmp_path, "second")
    assert len(list(read_folder(tmp_path / "data/captions", Caption))) == 2 * N_SHARDS


def test_a_link_to_the_folder_is_kept_and_nothing_behind_a_link_in_it_is_deleted(tmp_path: Path) -> None:
    """The folder could not be made where its link was, after all the work."""
    others = tmp_path / "others.txt"
    others.write_text("mine")
    for name in ("empty", "filled"):
        (tmp_path / name / "previews").mkdir(parents=True)
    (tmp_path / "filled/link").symlink_to(others)
    (tmp_path / "filled/links").symlink_to(tmp_path / "empty")
    (tmp_path / "data").mkdir()
    for place in ("empty", "filled", "new"):
        (tmp_path / "data/captions").unlink(missing_ok=True)
        (tmp_path / "data/captions").symlink_to(tmp_path / place)
        make_and_publish(tmp_path, place)
        assert (tmp_path / "data/captions").is_symlink()
        assert sorted(read_bytes(tmp_path)) == sorted(["summary.json", *read_summary(tmp_path / place).shards])
        assert len(list(read_folder(tmp_path / place, Caption))) == 2 * N_SHARDS
    assert others.read_text() == "mine"


def test_a_mount_point_is_emptied_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be removed, as it is a file system of its own."""
    make_and_publish(tmp_path, "first")
    out, rmdir = tmp_path / "data/captions", os.rmdir

    def refuse(path: Any, **options: Any) -> None:
        if Path(path) == out:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", refuse)
    make_and_publish(tmp_path, "second")
    assert len(list(read_folder(out, Caption))) == 2 * N_SHARDS


def test_a_folder_that_was_emptied_in_part_is_not_a_published_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_and_publish(tmp_path, "first")

    def stop(path: Path) -> None:
        raise StopRun

    monkeypatch.setattr(publish_module, "_delete", stop)
    with pytest.raises(StopRun):
        make_and_publish(tmp_path, "second")
    with pytest.raises(ShardError, match=r"want a published folder with summary\.json, got none"):
        list(read_folder(tmp_path / "data/captions", Caption))


def test_files_are_copied_where_the_file_system_has_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_and_publish(tmp_path / "linked", "key")

    def refuse(*_: Any) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    make_and_publish(tmp_path / "copied", "key")
    assert read_bytes(tmp_path / "copied") == read_bytes(tmp_path / "linked")


def test_a_damaged_shard_in_scratch_is_named(tmp_path: Path) -> None:
    interrupt_before(tmp_path, "key", 2)
    file = tmp_path / "scratch/captions/key/shard-00001.parquet"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ShardError, match=r"shard-00001.parquet is damaged or truncated .*; delete it and run its stage again"):
        make_and_publish(tmp_path, "key")
    file.unlink()
    make_and_publish(tmp_path, "key")
    assert read_shard(tmp_path / "data/captions/shard-00001.parquet", Caption, verify=True) == make_shard(1)[0]


@pytest.mark.slow
def test_hashing_a_large_output_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_and_publish(tmp_path / "quick", "key")
    assert not capsys.readouterr().err
    monkeypatch.setenv("EMUEDIT_PROGRESS_SECONDS", "0.01")
    read = file_hashes._read

    def read_slowly(*arguments: Any) -> str:
        time.sleep(0.05)
        return read(*arguments)

    monkeypatch.setattr(file_hashes, "_read", read_slowly)
    make_and_publish(tmp_path / "slow", "key")
    assert capsys.readouterr().err.splitlines()[-1] == "captions: hash output: 8/8 files, 100%"
    assert read_bytes(tmp_path / "slow") == read_bytes(tmp_path / "quick")


def test_params_of_other_work_that_cannot_be_read_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a power loss a file may be empty; and another run may delete it."""
    files = [scratch_folder(tmp_path, "train", key, {"steps": 1}) / ".params.json" for key in ("cut", "deleted", "whole")]
    files[0].write_text("")
    files[1].unlink()
    capsys.readouterr()
    monkeypatch.setattr(Path, "glob", lambda *_: files)
    scratch_folder(tmp_path, "train", "new", {"steps": 2})
    (line,) = capsys.readouterr().out.splitlines()
    assert f"the unfinished work in {files[2].parent} is not continued, because steps changed" in line
