"""A stopped import is resumed with what its finished shards have, without their images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from emuedit.data.formats import pair_import
from emuedit.data.formats.pair_import import find_parquet_files, import_pairs
from tests.data.test_pair_import import import_folder, ip2p_row, make_options, write_dataset


def test_a_stopped_import_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_import, "ROWS_PER_SHARD", 2)
    folder = write_dataset(tmp_path / "in", "instructpix2pix", [ip2p_row(0), ip2p_row(1), ip2p_row(0), ip2p_row(2), ip2p_row(1)])
    uninterrupted = import_folder(folder, "instructpix2pix", tmp_path / "uninterrupted")
    calls: list[int] = []
    set_tasks: Callable[..., Any] = pair_import._set_tasks

    def stop_at_second_call(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return set_tasks(*arguments)

    monkeypatch.setattr(pair_import, "_set_tasks", stop_at_second_call)
    with pytest.raises(KeyboardInterrupt):
        import_folder(folder, "instructpix2pix", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert import_folder(folder, "instructpix2pix", tmp_path / "out") == uninterrupted
    assert len(calls) == 4  # three shards, of which the stopped one is converted twice
    assert [drop.reason for drop in uninterrupted[1]] == ["duplicate", "duplicate"]


def test_a_resumed_import_reads_no_image_of_a_finished_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_import, "ROWS_PER_SHARD", 2)
    rows = [ip2p_row(0), ip2p_row(1), ip2p_row(0), ip2p_row(2)]
    folder, out = write_dataset(tmp_path / "in", "instructpix2pix", rows), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(pair_import, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            import_folder(folder, "instructpix2pix", out)
    (shard,) = tmp_path.glob("scratch/*/*/shard-00000.parquet")
    file, content = pq.ParquetFile(shard), shard.read_bytes()
    names = [file.metadata.row_group(0).column(number).path_in_schema for number in range(file.metadata.num_columns)]
    start = file.metadata.row_group(0).column(names.index("source.bytes")).data_page_offset
    shard.write_bytes(content[:start] + b"\xff" * 40 + content[start + 40 :])
    summary = import_pairs(make_options("instructpix2pix"), find_parquet_files(folder, "*.parquet"), out, tmp_path)
    assert summary.counts == {"pairs": 3, "pairs_local": 3, "dropped_duplicate": 1}


def stop(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_a_resumed_import_knows_the_pairs_of_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_import, "ROWS_PER_SHARD", 2)
    folder = write_dataset(tmp_path / "in", "instructpix2pix", [ip2p_row(0), ip2p_row(1), ip2p_row(0), ip2p_row(2)])
    calls: list[int] = []
    convert = pair_import._convert_batch

    def stop_at_second_call(*arguments: Any) -> Any:
        calls.append(1)
        return stop() if len(calls) == 2 else convert(*arguments)

    monkeypatch.setattr(pair_import, "_convert_batch", stop_at_second_call)
    with pytest.raises(KeyboardInterrupt):
        import_folder(folder, "instructpix2pix", tmp_path / "out")
    pairs, drops = import_folder(folder, "instructpix2pix", tmp_path / "out")
    assert [pair.instruction for pair in pairs] == ["make it 0", "make it 1", "make it 2"]
    assert [(drop.reason, drop.index) for drop in drops] == [("duplicate", 2)]
    assert not list((tmp_path / "out").glob(".*"))
