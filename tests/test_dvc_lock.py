"""Reading `dvc.lock`."""

import re
from pathlib import Path

import pytest

from emuedit.dvc_lock import LockFileError, output_hashes, parse_stages, read_stages

LOCK = """\
schema: '2.0'
stages:
  first:
    cmd: make
    deps: [{path: code.py, md5: c0de}]
    outs: [{path: data, hash: md5, md5: aa.dir}, {path: table, hash: etag, etag: bb}, {path: external}]
  second:
    cmd: echo
"""


def test_the_hash_of_an_output_is_of_the_kind_that_its_entry_names(tmp_path: Path) -> None:
    assert read_stages(tmp_path) == {}
    (tmp_path / "dvc.lock").write_text(LOCK)
    stages = read_stages(tmp_path)
    assert [*stages] == ["first", "second"]
    assert output_hashes(stages) == {"data": "aa.dir", "table": "bb", "external": ""}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"a word", b"stages: [1]", b"stages: {first: text}", b"stages: {first: {outs: 1}}", b"stages: {first: [}",
        b"stages: {first: {outs: [data]}}", b"stages: {first: {deps: [{md5: aa}]}}", b"stages: {first: {outs: [{path: 3}]}}",
        b"\xff\xfe\xff", b"stages:\n<<<<<<< HEAD\n  one: {cmd: a}\n=======\n", b"stages: {first: 2026-99-99}",
    ],
)  # fmt: skip
def test_a_damaged_file_is_an_error_that_says_where_and_what_to_do(content: bytes, tmp_path: Path) -> None:
    (file := tmp_path / "dvc.lock").write_bytes(content)
    message = f"want a dvc.lock as DVC writes it, got a damaged one: {file}; restore it with `git checkout -- dvc.lock`, or "
    with pytest.raises(LockFileError, match=re.escape(message)):
        read_stages(tmp_path)
    with pytest.raises(LockFileError, match=r"got a damaged one: that of version 3; upload it again"):
        parse_stages(content, "that of version 3", "upload it again")
