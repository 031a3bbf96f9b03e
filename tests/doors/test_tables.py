# ruff: noqa: E501  one case, one line
"""Doors of tables: captions in .txt, .csv, .jsonl and .parquet, and pairs in Parquet, as people have them. One line per case."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emuedit.data.formats.emuedit_format import FORMAT as EMUEDIT_FORMAT
from emuedit.data.formats.instructpix2pix import FORMAT
from emuedit.data.formats.pair_format import FormatError
from emuedit.data.formats.pair_import import CARD, find_parquet_files, import_pairs
from emuedit.data.formats.row_conversion import ImportOptions
from emuedit.data.image_io import to_png
from emuedit.data.publish import read_folder
from emuedit.data.records import Caption, Drop
from emuedit.stages.captions import OUT, CaptionsError, CaptionsParams, run
from tests.stages.workspace import toy_world

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HUGE = "a " * 100_000


def table(*texts: str | None, column: str = "caption") -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({column: list(texts)}), stream, compression="none")
    return stream.getvalue()


def parquet_with_bytes(*texts: bytes) -> bytes:
    """A column that says it is text and holds these bytes."""
    stream = io.BytesIO()
    column = pa.StringArray.from_buffers(
        len(texts), pa.py_buffer(np.cumsum([0, *map(len, texts)], dtype=np.int32).tobytes()), pa.py_buffer(b"".join(texts))
    )
    pq.write_table(pa.table({"caption": column}), stream)
    return stream.getvalue()


# name of the case -> (file, its bytes, the captions that are kept, reason -> rows that are dropped)
GOOD: dict[str, tuple[str, bytes, list[str], dict[str, int]]] = {
    "TXT with a byte-order mark": ("c.txt", b"\xef\xbb\xbfa red star\na red star\n", ["a red star"], {"duplicate": 1}),
    "TXT of Windows": ("c.txt", b"a red star\r\na blue ring\r\n", ["a red star", "a blue ring"], {}),
    "TXT of an old Mac": ("c.txt", b"a red star\ra blue ring\r", ["a red star", "a blue ring"], {}),
    "TXT in UTF-16": ("c.txt", "a red star\na café\n".encode("utf-16"), ["a red star", "a café"], {}),
    "TXT in UTF-16 big-endian": ("c.txt", b"\xfe\xff" + "a red star\n".encode("utf-16-be"), ["a red star"], {}),
    "TXT in cp1252": ("c.txt", "a red star\na café\n".encode("cp1252"), ["a red star"], {"not_utf8": 1}),
    "TXT without a last newline": ("c.txt", b"a red star", ["a red star"], {}),
    "TXT with a zero byte far down": ("c.txt", b"a red star\n" * 500 + b"a \0 ring\n", ["a red star", "a \0 ring"], {"duplicate": 499}),
    "TXT with a huge line": ("c.txt", f"a red star\n{HUGE}\n".encode(), ["a red star"], {"field_too_long": 1}),
    "CSV with a byte-order mark": ("c.csv", b"\xef\xbb\xbfcaption,n\na red star,1\n", ["a red star"], {}),
    "CSV in UTF-16": ("c.csv", "caption,n\na red star,1\n".encode("utf-16"), ["a red star"], {}),
    "CSV with a row of cp1252": ("c.csv", b"caption,n\na caf\xe9,1\na red star,2\n", ["a red star"], {"not_utf8": 1}),
    "CSV with a short and a long row": ("c.csv", b"caption,n\na ring\na red star,1\na ring,1,2\n", ["a red star"], {"ragged_row": 2}),
    "CSV with a huge field": ("c.csv", f"caption,n\n{HUGE},1\na red star,2\n".encode(), ["a red star"], {"field_too_long": 1}),
    "CSV with two long fields": ("c.csv", f"caption,a,b\na red star,{'x' * 70_000},{'y' * 70_000}\n".encode(), ["a red star"], {}),
    "CSV with an open quote": ("c.csv", b'caption,n\na red star,1\n"a ring,2\na cross,3\n', ["a red star"], {"unclosed_quote": 1}),
    "CSV with an open quote in the last line": ("c.csv", b'caption,n\na red star,1\na ring,"2', ["a red star"], {"unclosed_quote": 1}),
    "CSV with an open quote in the last column": ("c.csv", b'n,caption\n1,a red star\n4,"a 5 inch screen\n5,a cross\n', ["a red star"], {"unclosed_quote": 1}),
    "CSV with quotes inside": ("c.csv", b'n,caption\n1,"blue" bike\n2,a 5" screen\n3,"a ""red"" star"', ["blue bike", 'a 5" screen', 'a "red" star'], {}),
    "CSV with an open quote before many lines": ("c.csv", f'n,caption\n1,"a ring\n{HUGE}\n2,a red star\n'.encode(), ["a red star"], {"field_too_long": 1}),
    "CSV with a newline in a field": ("c.csv", b'caption,n\n"a red\nstar",1\n', ["a red star"], {}),
    "CSV with empty lines": ("c.csv", b"caption,n\n\na red star,1\n\n", ["a red star"], {}),
    "JSONL with a byte-order mark": ("c.jsonl", b'\xef\xbb\xbf{"caption": "a red star"}\n', ["a red star"], {}),
    "JSONL with a huge image": ("c.jsonl", json.dumps({"caption": "a red star", "image_b64": HUGE}).encode(), ["a red star"], {}),
    "JSONL with a huge caption": ("c.jsonl", json.dumps({"caption": HUGE}).encode() + b'\n{"caption": "a red star"}\n', ["a red star"], {"field_too_long": 1}),
    "JSONL in UTF-16": ("c.jsonl", '{"caption": "a red star"}\n'.encode("utf-16"), ["a red star"], {}),
    "JSONL with half a last line": ("c.jsonl", b'{"caption": "a red star"}\n{"caption": "a bl', ["a red star"], {"not_json": 1}),
    "JSONL with half a first line": ("c.jsonl", b'{"caption": "a\n{"caption": "a red star"}\n', ["a red star"], {"not_json": 1}),
    "JSONL with two objects in a line": ("c.jsonl", b'{"caption": "a ring"}{"caption": "b"}\n{"caption": "a red star"}\n', ["a red star"], {"not_json": 1}),
    "JSONL with a list and a number": ("c.jsonl", b'[1]\n5\n{"caption": "a red star"}\n', ["a red star"], {"not_an_object": 2}),
    "JSONL with null, a number, and without": ("c.jsonl", b'{"caption": "a red star"}\n{"caption": null}\n{"caption": 3}\n{"n": 1}\n', ["a red star"], {"empty": 1, "not_text": 1, "no_column": 1}),
    "JSONL with half a surrogate pair": ("c.jsonl", b'{"caption": "a \\ud83d ring"}\n{"caption": "a red star"}\n', ["a red star"], {"not_unicode": 1}),
    "JSONL nested too deep": ("c.jsonl", b"[" * 5000 + b'\n{"caption": "a red star"}\n', ["a red star"], {"not_json": 1}),
    "JSONL with a number of 5,000 digits": ("c.jsonl", b'{"caption": "a ring", "n": ' + b"9" * 5000 + b'}\n{"caption": "a red star"}\n', ["a red star"], {"not_json": 1}),
    "JSONL with NaN": ("c.jsonl", b'{"caption": "a red star", "n": NaN}\n', ["a red star"], {}),
    "JSONL of cp1252": ("c.jsonl", '{"caption": "a café"}\n{"caption": "a red star"}\n'.encode("cp1252"), ["a red star"], {"not_utf8": 1}),
    "Parquet with a null": ("c.parquet", table("a red star", None), ["a red star"], {"empty": 1}),
    "Parquet with bytes that are no UTF-8": ("c.parquet", parquet_with_bytes(b"a red star", b"a caf\xe9"), ["a red star"], {"not_utf8": 1}),
}  # fmt: skip

# name of the case -> (file, its bytes, what must be said)
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "an empty TXT": ("c.txt", b"", r"c.txt, which is empty"),
    "an empty CSV": ("c.csv", b"", r"c.csv, which is empty"),
    "an empty Parquet": ("c.parquet", b"", r"c.parquet, which is empty"),
    "a TXT of Git LFS": ("c.txt", LFS, r"a Git LFS pointer; run `git lfs pull`"),
    "a CSV of Git LFS": ("c.csv", LFS, r"a Git LFS pointer"),
    "a JSONL of Git LFS": ("c.jsonl", LFS, r"a Git LFS pointer"),
    "a Parquet of Git LFS": ("c.parquet", LFS, r"a Git LFS pointer"),
    "a Parquet that is cut": (
        "c.parquet",
        table("a red star", "a ring")[:-30],
        r"want a Parquet file, got .*c.parquet, which is damaged",
    ),
    "a CSV that is called Parquet": ("c.parquet", b"caption\na red star\n", r"want a Parquet file"),
    "a Parquet that is called CSV": ("c.csv", table("a red star"), r"want text in UTF-8"),
    "a zip that is called TXT": ("c.txt", b"PK\x03\x04\0\0\0", r"want text in UTF-8"),
    "a TXT in UTF-16 without a mark": ("c.txt", "a red star\n".encode("utf-16-le"), r"want text in UTF-8"),
    "one JSON list (datasets#5955)": ("c.jsonl", b'[{"caption": "a red star"}]', r"want one JSON object in each line"),
    "one JSON document (datasets#1784)": ("c.jsonl", b'{\n"caption": "a red star"\n}', r"want one JSON object in each line"),
    "another column": ("c.csv", b"text\na red star\n", r"want key 'caption' .*set captions.column"),
    "another separator": ("c.csv", b"caption;n\na red star;1\n", r"want key 'caption' .*got \['caption;n'\]"),
    "a column of numbers": ("c.jsonl", b'{"caption": 3}\n', r"want text in 'caption'"),
    "a header with an open quote": (
        "c.csv",
        b'n,"caption\n1,a red star\n',
        r"want a header line in .*, got a quotation mark that is not closed",
    ),
    "another column of a Parquet": (
        "c.parquet",
        table("a red star", column="text"),
        r"want key 'caption' in .*, got \['text'\]; set captions.column",
    ),
    "a column twice": ("c.csv", b"caption,caption\na,b\n", r"want different names of columns"),
    "nothing but bad rows": ("c.jsonl", b"{\x22caption\n", r"want at least one caption.*'dropped_not_json': 1"),
    "a header alone": ("c.csv", b"caption,n\n", r"want at least one caption"),
    "a folder of pictures": ("c/1.png", b"not a picture", r"want key 'caption' in .*, got \['image'\] in row 1"),
    "a file of another kind": ("c.xlsx", b"PK\x03\x04", r"want a caption source .txt, .csv"),
}


def read(folder: Path, name: str) -> tuple[list[str], dict[str, int]]:
    """The captions that are kept, and how many rows are dropped for each reason."""
    params = CaptionsParams.model_validate({"world": toy_world() | {"captions": name}, "n_rows": 1000})
    summary = run(params, folder)
    drops = list(read_folder(folder / OUT, Drop, "dropped-*.parquet"))
    assert len(drops) == summary.counts["dropped"]
    dropped = {key.removeprefix("dropped_"): n for key, n in summary.counts.items() if key.startswith("dropped_")}
    return [caption.text for caption in read_folder(folder / OUT, Caption)], dropped


@pytest.mark.parametrize("case", GOOD)
def test_bad_rows_are_dropped_and_counted(case: str, tmp_path: Path) -> None:
    name, content, captions, dropped = GOOD[case]
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path, name) == (captions, dropped)


def test_an_unclosed_quote_names_the_lines_that_it_took(tmp_path: Path) -> None:
    rows = [f"{number},a ring number {number}" for number in range(2, 301)]
    rows[2] = '4,"a 5 inch screen'
    (tmp_path / "c.csv").write_text("\n".join(["n,caption", *rows]) + "\n")
    assert read(tmp_path, "c.csv") == (["a ring number 2", "a ring number 3"], {"unclosed_quote": 1})
    (drop,) = read_folder(tmp_path / OUT, Drop, "dropped-*.parquet")
    assert drop.subject.startswith("lines 4 to 300: 4,a 5 inch screen")


def test_no_image_of_a_parquet_file_is_read_before_its_columns_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pa.array([{"bytes": b"image", "path": None}] * 3)
    pq.write_table(pa.table({"image": images, "text": ["a red star"] * 3}), tmp_path / "c.parquet")
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("want no rows read"))
    with pytest.raises(ValueError, match=r"want key 'caption' in .*, got \['image', 'text'\]"):
        read(tmp_path, "c.parquet")


@pytest.mark.parametrize("case", REFUSED)
def test_bad_files_are_refused(case: str, tmp_path: Path) -> None:
    name, content, words = REFUSED[case]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        read(tmp_path, Path(name).parts[0])
    assert type(error.value).__module__.startswith("emuedit.")


def test_a_python_source_is_held_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "odd_source.py").write_text(
        "def captions(split, start, n):\n    return ['a red star', None, 3, 'a \\ud83d'][start:start + n]\n"
    )
    assert read(tmp_path, "odd_source.py") == (["a red star"], {"empty": 1, "not_text": 1, "not_unicode": 1})
    assert issubclass(CaptionsError, ValueError)


PICTURE = to_png(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))


def pair(number: int, **changes: object) -> dict[str, object]:
    picture = {"bytes": PICTURE, "path": None}
    row = {
        "original_prompt": f"a star {number}", "original_image": picture, "edit_prompt": f"make it red {number}",
        "edited_prompt": "a red star", "edited_image": picture,
    }  # fmt: skip
    return row | changes


def write_pairs(path: Path, *rows: dict[str, object], row_group_size: int | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=row_group_size, compression="none")
    return path


def import_folder(root: Path) -> dict[str, int]:
    options = ImportOptions(FORMAT, None, "all local", lambda texts: ["local"] * len(texts))
    return import_pairs(options, find_parquet_files(root / "in", "*.parquet"), root / "out", root).counts


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def damage_inside(path: Path) -> None:
    """Overwrite the second row group; the footer stays."""
    offset = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 200] = b"\xff" * 200
    path.write_bytes(bytes(content))


# what happens to one of three files of two pairs each -> (how, the count that says so, pairs that are left at least)
FILES: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "zero bytes": (lambda path: path.write_bytes(b""), "dropped_files_unreadable", 4),
    "cut": (truncate, "dropped_files_unreadable", 4),
    "a Git LFS pointer": (lambda path: path.write_bytes(LFS), "dropped_files_unreadable", 4),
    "a page of HTML": (lambda path: path.write_bytes(b"<!doctype html>"), "dropped_files_unreadable", 4),
    "damaged inside": (damage_inside, "dropped_files_damaged", 4),
}


@pytest.mark.parametrize("case", FILES)
def test_one_bad_file_among_good_ones_is_named_and_counted(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        write_pairs(tmp_path / f"in/{number}.parquet", pair(2 * number), pair(2 * number + 1), row_group_size=1)
    harm, reason, n_pairs = FILES[case]
    harm(tmp_path / "in/1.parquet")
    counts = import_folder(tmp_path)
    assert counts[reason] == 1
    assert n_pairs <= counts["pairs"] < 6
    assert "1.parquet" in capsys.readouterr().out
    assert f"| {reason.removeprefix('dropped_')} | 1 |" in (tmp_path / "out" / CARD).read_text()


def test_bad_files_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.parquet").write_bytes(LFS)
    with pytest.raises(FormatError, match=r"1.parquet, a Git LFS pointer; run `git lfs pull`"):
        import_folder(tmp_path)


# a picture's bytes that some decoder fails on; each becomes one drop among good pairs
PICTURES: dict[str, bytes] = {
    "empty": b"",
    "no picture": b"hello",
    "a cut PNG": PICTURE[: len(PICTURE) // 2],
    "IHDR after IDAT (Pillow#6252)": PICTURE[:-12] + b"\x00\x00\x00\x00IHDR\xa8\xa1\xae\x0a" + PICTURE[-12:],
    "PPM beyond its maximum (Pillow#7876)": b"P2 16 16 65535 " + b"99999999999 " * 256,
    "a corrupt AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\0" * 100,
    "a JPEG of Git LFS": LFS,
    "a GIF that is cut": b"GIF89a\x10\x00\x10\x00",
    "a TIFF without end": b"II*\x00\x08\x00\x00\x00\xff\xff",
}


@pytest.mark.slow
@pytest.mark.parametrize("field", ["original_image", "edited_image"])
def test_bad_pictures_among_300_cost_one_drop_each(field: str, tmp_path: Path) -> None:
    good = [pair(number) for number in range(300)]
    bad = [pair(1000 + number, **{field: {"bytes": content, "path": None}}) for number, content in enumerate(PICTURES.values())]
    write_pairs(tmp_path / "in/1.parquet", *good[:150], *bad, *good[150:])
    side = "source" if field == "original_image" else "target"
    assert import_folder(tmp_path) == {"pairs": 300, "pairs_local": 300, f"dropped_{side}_unreadable": len(PICTURES)}


def test_odd_cells_of_our_own_format_cost_one_drop_each(tmp_path: Path) -> None:
    """A NaN or an infinite score is undefined; an origin that is no JSON, or empty, is dropped."""
    origin = {"task": "local", "recipe": "{}", "seed": 1, "model_revision": "m", "instruction_id": "i", "parent_ids": ["a", "b"], "mask": None, "pair_id": "p", "score_clip": 0.5}  # fmt: skip
    changes: list[dict[str, object]] = [
        {}, {"score_clip": float("nan")}, {"score_clip": float("inf")}, {"score_clip": None}, {"recipe": "{"}, {"recipe": "[]"},
        {"recipe": '{"x": NaN}'}, {"recipe": None}, {"task": None}, {"seed": None}, {"parent_ids": None}, {"edit_prompt": None},
        {"mask": {"bytes": b"no mask", "path": None}},
    ]  # fmt: skip
    write_pairs(tmp_path / "in/1.parquet", *(pair(number, **(origin | change)) for number, change in enumerate(changes)))
    options = ImportOptions(EMUEDIT_FORMAT, None, "the dataset itself", None)
    counts = import_pairs(options, find_parquet_files(tmp_path / "in", "*.parquet"), tmp_path / "out", tmp_path).counts
    assert counts == {
        "pairs": 4,
        "pairs_local": 4,
        "dropped_origin_unreadable": 7,
        "dropped_empty_instruction": 1,
        "dropped_mask_unreadable": 1,
    }
    assert json.loads((tmp_path / "out/summary.json").read_text())["counts"] == counts
