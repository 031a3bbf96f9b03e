import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from emuedit.data.dependencies import content_key
from emuedit.data.png import PngError, decode_png, encode_png
from emuedit.data.publish import publish, read_folder, read_summary, scratch_folder
from emuedit.data.records import Caption, Drop, EvalRecord, Instruction, Pair, Record, Verdict
from emuedit.data.shards import ShardError, read_shard, write_shard
from emuedit.runtime import rng


def noise(*shape: int) -> NDArray[np.uint8]:
    return rng("picture", *shape).integers(0, 256, shape, dtype=np.uint8)


def pair(**changes: object) -> Pair:
    plain = Pair(
        instruction_id="0123456789abcdef",
        parent_ids=("a", "b"),
        task="local",
        instruction="make the star red",
        source_caption="a blue star",
        target_caption="a red star",
        seed=2**62 + 1,
        model_revision="base_model@1",
        recipe={"blur_px": 9, "weights": [0.5, 0.25, 0.25]},
        source=encode_png(noise(48, 64, 3)),
        target=encode_png(noise(64, 48, 3)),
        mask=encode_png(noise(48, 64)),
        scores={"clip_dir": 0.25, "depth_l1": None},
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


PNG = encode_png(noise(8, 8, 3))
EVERY_KIND: list[Record] = [
    Caption("a red star on grass", "c.txt", 3),
    Instruction("c", "remove", "erase it", "a star", "grass", "star", None, False, 5, "llm@1", '{"edit": "erase it"}'),
    pair(),
    pair(mask=None),
    Verdict("p", False, "local", ("clip_dir",), {"clip_dir": 0.2}, {"clip_dir": 0.1}),
    Drop("a star", "duplicate", "c.txt", 9),
    EvalRecord(
        "emuedit", "remove", "erase it", "a star", "grass", "add", 7, PNG, PNG, None, True, "", {"l1": 0.5, "clip_dir": None}
    ),
]


@pytest.mark.parametrize("record", EVERY_KIND, ids=lambda record: type(record).__name__)
def test_round_trip(tmp_path: Path, record: Record) -> None:
    write_shard(tmp_path / "s.parquet", [record, record])
    assert read_shard(tmp_path / "s.parquet", type(record), verify=True) == [record, record]
    assert read_shard(tmp_path / "s.parquet", type(record))[0].id == record.id


def test_ids_do_not_change_between_versions() -> None:
    expected = (
        "8aea643d87cc9234 e27874be332a7cd8 b023a19e9ae9c2b2 8717b85f78769b73 134b923bf6bf4680 dfa807216b093c83 0ef8659f84e79b34"
    )
    assert [record.id for record in EVERY_KIND] == expected.split()


def test_a_renamed_field_keeps_its_column(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.parquet", [Verdict("p", True, "local", (), {"clip_dir": 0.2}, {"clip_dir": 0.3})])
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.column_names == ["id", "pair_id", "kept", "task", "reasons", "gates", "score_clip_dir"]


def test_ids_depend_on_content() -> None:
    original = pair()
    variants = [
        pair(seed=1),
        pair(parent_ids=("ab",)),
        pair(recipe={"blur_px": 10}),
        pair(mask=None),
        pair(source=encode_png(noise(64, 48, 3).reshape(48, 64, 3))),
    ]
    assert len({original.id, *(variant.id for variant in variants)}) == 6
    assert pair(scores={"clip_dir": 0.9}).id == original.id
    assert pair(recipe={"weights": [0.5, 0.25, 0.25], "blur_px": 9}).id == original.id
    assert Caption("x", "a", 1).id == Caption("x", "b", 2).id != Drop("x", "a", "b", 1).id


def test_the_id_of_a_caption_depends_on_the_content_of_its_image_not_on_its_file() -> None:
    plain = Caption("x", "a", 1)
    hashed, moved, changed = Caption("x", "a", 1, "i", "h"), Caption("x", "a", 1, "j", "h"), Caption("x", "a", 1, "i", "k")
    assert hashed.id == moved.id
    assert len({plain.id, hashed.id, changed.id}) == 3


def test_a_shard_without_a_field_that_was_added_later_can_be_read(tmp_path: Path) -> None:
    record = Caption("a red star", "c.txt", 3)
    write_shard(tmp_path / "s.parquet", [record])
    table = pq.read_table(tmp_path / "s.parquet")
    pq.write_table(table.drop_columns(["image", "image_hash"]), tmp_path / "s.parquet")
    assert read_shard(tmp_path / "s.parquet", Caption, verify=True) == [record]
    pq.write_table(table.drop_columns(["source"]), tmp_path / "s.parquet")
    with pytest.raises(ShardError, match=r"\['source'\] are missing"):
        read_shard(tmp_path / "s.parquet", Caption)


def test_ids_depend_on_pixels_not_on_compression() -> None:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(noise(48, 64, 3)).save(stream, format="PNG", compress_level=0)
    assert stream.getvalue() != pair().source
    assert pair(source=stream.getvalue()).id == pair().id


@pytest.mark.slow
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(), (3,), (4,)]))
def test_png_is_lossless(height: int, width: int, channels: tuple[int, ...]) -> None:
    pixels = noise(height, width, *channels)
    decoded = decode_png(encode_png(pixels))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("wrong", [noise(4, 4, 2), noise(3, 4, 4, 3), noise(4, 4, 3) / 255.0, noise(4, 0, 3), noise(4)])
def test_encode_png_refuses_other_arrays(wrong: NDArray[np.generic]) -> None:
    with pytest.raises(PngError, match=r"want uint8 \[H,W\].*; got (uint8|float64) \["):
        encode_png(wrong)


@pytest.mark.parametrize("wrong", [b"", b"nonsense", encode_png(noise(32, 32, 3))[:500]])
def test_damaged_png_is_refused(wrong: bytes) -> None:
    with pytest.raises(PngError, match="want PNG bytes"):
        decode_png(wrong)


def test_undefined_scores_are_none_never_nan() -> None:
    with pytest.raises(ValueError, match="want a finite score or None"):
        pair(scores={"clip_dir": float("nan")})


def test_verdict_has_reasons_exactly_when_rejected() -> None:
    with pytest.raises(ValueError, match="want reasons exactly when"):
        Verdict("p", True, "local", ("clip_dir",), {}, {})


@pytest.mark.slow
def test_same_records_same_bytes_in_another_process(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [pair(), pair(mask=None)])
    code = (
        "from tests.data.test_records import pair; from emuedit.data.shards import write_shard;"
        f"write_shard({str(tmp_path / 'b.parquet')!r}, [pair(), pair(mask=None)])"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.slow
def test_pandas_duckdb_and_datasets_read_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.parquet"
    record = pair()
    write_shard(path, [record, pair(mask=None, scores={"clip_dir": -0.5, "depth_l1": 1.0})])

    frame = pd.read_parquet(path)
    assert frame["id"][0] == record.id
    assert frame["score_clip_dir"].tolist() == [0.25, -0.5]
    assert frame["mask"][1] is None
    np.testing.assert_array_equal(decode_png(frame["target"][0]["bytes"]), noise(64, 48, 3))

    query = f"select source.bytes, recipe->>'blur_px' from '{path}' where score_clip_dir > 0 and score_depth_l1 is null"
    ((png, blur_px),) = duckdb.sql(query).fetchall()
    np.testing.assert_array_equal(decode_png(png), noise(48, 64, 3))
    assert blur_px == "9"

    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(rows.features["source"], datasets.Image)
    row = rows[0]
    for name, shape in {"source": (48, 64, 3), "target": (64, 48, 3), "mask": (48, 64)}.items():
        np.testing.assert_array_equal(np.array(row[name]), noise(*shape))
    assert rows[1]["mask"] is None
    assert row["parent_ids"] == ["a", "b"]
    assert row["seed"] == record.seed


def test_an_empty_shard_keeps_its_class(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.parquet", [], Caption)
    assert read_shard(tmp_path / "s.parquet", Caption) == []
    with pytest.raises(ShardError, match="pass kind="):
        write_shard(tmp_path / "t.parquet", [])


def test_records_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"want one kind of record.*got Caption and Drop"):
        write_shard(tmp_path / "s.parquet", [Caption("a", "b", 1), Drop("a", "b", "c", 1)])  # type: ignore[list-item]
    with pytest.raises(ShardError, match="want the same score names"):
        write_shard(tmp_path / "s.parquet", [pair(), pair(scores={"other": 1.0})])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_damaged_shards_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "shard-00007.parquet"
    write_shard(path, [pair()])
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:middle],
            "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "empty": b"",
            "text": b"no",
        }[damage]
    )
    with pytest.raises(ShardError, match=r"shard-00007.parquet is damaged or truncated .*; delete it and run its stage again"):
        read_shard(path, Pair)


@pytest.mark.parametrize("error", [pa.ArrowMemoryError("malloc failed"), PermissionError(13, "Permission denied")])
def test_a_shard_that_cannot_be_read_now_is_not_called_damaged(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    write_shard(tmp_path / "s.parquet", [Caption("a", "b", 1)])
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", fail)
    with pytest.raises(type(error)):
        read_shard(tmp_path / "s.parquet", Caption)


def test_wrong_and_missing_shards_are_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.parquet", [Caption("a", "b", 1)])
    with pytest.raises(ShardError, match=r"want records of Drop in .*s.parquet, got Caption"):
        read_shard(tmp_path / "s.parquet", Drop)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(ShardError, match="got an unknown kind"):
        read_shard(tmp_path / "p.parquet", Drop)
    with pytest.raises(ShardError, match="got no file at"):
        read_shard(tmp_path / "absent.parquet", Drop)


def test_verify_detects_changed_content(tmp_path: Path) -> None:
    record = Caption("a", "b", 1)
    record.__dict__["id"] = "0" * 16
    write_shard(tmp_path / "s.parquet", [record])
    read_shard(tmp_path / "s.parquet", Caption)
    with pytest.raises(ShardError, match="record 0000000000000000 has the content of"):
        read_shard(tmp_path / "s.parquet", Caption, verify=True)


def publish_captions(root: Path) -> Path:
    scratch = scratch_folder(root, "captions", "f" * 16)
    for number in range(3):
        write_shard(scratch / f"shard-{number:05d}.parquet", [Caption(f"caption {number}", "c.txt", number)])
    (scratch / ".shard-00003.1.part.parquet").write_bytes(b"half")
    publish(scratch, root / "out", "captions", {"n": 3}, {"kept": 3})
    return root / "out"


def test_publish_writes_complete_files_and_a_summary_and_deletes_scratch(tmp_path: Path) -> None:
    out = publish_captions(tmp_path)
    assert sorted(file.name for file in out.iterdir()) == [*(f"shard-0000{n}.parquet" for n in range(3)), "summary.json"]
    assert not (tmp_path / "scratch" / "captions").exists()
    assert [caption.index for caption in read_folder(out, Caption)] == [0, 1, 2]
    assert read_summary(out).counts == {"kept": 3}
    first = (out / "summary.json").read_bytes()
    assert (publish_captions(tmp_path) / "summary.json").read_bytes() == first


def test_unpublished_and_incomplete_folders_are_refused(tmp_path: Path) -> None:
    out = publish_captions(tmp_path)
    (out / "shard-00001.parquet").unlink()
    with pytest.raises(ShardError, match=r"want in .* the 3 shards .* got 2; different: \['shard-00001.parquet'\]"):
        list(read_folder(out, Caption))
    (out / "summary.json").write_text("{}")
    with pytest.raises(ShardError, match="is not a summary"):
        read_summary(out)
    (out / "summary.json").unlink()
    with pytest.raises(ShardError, match="want a published folder"):
        list(read_folder(out, Caption))


def test_content_key_depends_on_params_and_file_content(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "f"
    file.write_text("a")
    first = content_key({"n": 1}, tmp_path / "folder")
    assert content_key({"n": 1}, tmp_path / "folder") == first != content_key({"n": 2}, tmp_path / "folder")
    file.write_text("b")
    assert content_key({"n": 1}, tmp_path / "folder") != first
