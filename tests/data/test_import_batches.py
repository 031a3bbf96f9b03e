"""The batches of Parquet files, of which a resumed import reads the unfinished ones."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emuedit.data.formats.import_batches import ImportBatch, read_batches


def write_rows(path: Path, n_rows: int, group_rows: int, first: int = 0, has_categories: bool = False) -> Path:
    columns = {"text": [f"text {first + row}" for row in range(n_rows)]}
    if has_categories:
        columns["source"] = pa.array([f"source {row % 7}" for row in range(n_rows)]).dictionary_encode()
    table = pa.table(columns)
    encoded = ["source"] if has_categories else False
    pq.write_table(table, path, row_group_size=group_rows, compression="none", use_dictionary=encoded)
    return path


def read(files: list[Path], n_finished: int = 0) -> list[ImportBatch]:
    return list(read_batches(files, [{}] * len(files), 4, Counter(), lambda number: number < n_finished))


def texts(batch: ImportBatch) -> list[str]:
    return [row["text"] for part in batch.read() for row in part.to_pylist()]


@pytest.mark.parametrize("has_categories", [False, True])
@pytest.mark.parametrize("group_rows", [1, 3, 4, 6, 50])
def test_unfinished_batches_are_those_of_an_uninterrupted_import(group_rows: int, has_categories: bool, tmp_path: Path) -> None:
    """Also where batches span row groups, at whose ends pyarrow cuts its batches of a file with categories."""
    files = [write_rows(tmp_path / f"{n}.parquet", 30, group_rows, 100 * n, has_categories) for n in range(2)]
    uninterrupted = read(files)
    assert [batch.number for batch in uninterrupted] == list(range(16))
    assert [text for batch in uninterrupted for text in texts(batch)] == [f"text {n}" for n in (*range(30), *range(100, 130))]
    assert [batch.n_rows for batch in uninterrupted] == [4, 4, 4, 4, 4, 4, 4, 2] * 2
    for n_finished in range(17):
        batches = read(files, n_finished)
        described = [(batch.number, batch.file_name, batch.start, batch.n_rows) for batch in batches]
        assert described == [(batch.number, batch.file_name, batch.start, batch.n_rows) for batch in uninterrupted]
        assert list(map(texts, batches)) == [[]] * n_finished + list(map(texts, uninterrupted))[n_finished:]


def test_row_groups_of_finished_shards_are_not_read(tmp_path: Path) -> None:
    """The images of a million rows are hundreds of GB."""
    file = write_rows(tmp_path / "a.parquet", 12, 4)
    content = file.read_bytes()
    group = pq.read_metadata(file).row_group(0)
    damage = b"\xff" * group.total_byte_size
    file.write_bytes(content[:4] + damage + content[4 + len(damage) :])
    assert list(map(texts, read([file], 1))) == [[], *([f"text {n}" for n in range(start, start + 4)] for start in (4, 8))]
    assert read([file]) == []


def test_the_shards_of_a_file_keep_their_numbers_when_an_earlier_one_is_damaged(tmp_path: Path) -> None:
    """Or a resumed import would take the rows of one file for those of another."""
    files = [write_rows(tmp_path / f"{n}.parquet", 12, 4, 100 * n) for n in range(2)]
    second = pq.read_metadata(files[0]).row_group(1).column(0).data_page_offset
    content = files[0].read_bytes()
    files[0].write_bytes(content[:second] + b"\xff" * 40 + content[second + 40 :])
    assert [(batch.number, batch.file_name) for batch in read(files)] == [
        (0, "0.parquet"), (3, "1.parquet"), (4, "1.parquet"), (5, "1.parquet"),
    ]  # fmt: skip
