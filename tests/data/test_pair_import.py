"""Small datasets in the published schemas, written by `datasets`."""

import io
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from emuedit import cli
from emuedit.data import threads
from emuedit.data.formats import FORMAT_NAMES, pair_format, pair_import
from emuedit.data.formats.pair_format import FormatError, get_format
from emuedit.data.formats.pair_import import find_parquet_files, import_pairs
from emuedit.data.formats.row_conversion import ImportOptions
from emuedit.data.png import decode_png
from emuedit.data.publish import read_folder, read_summary
from emuedit.data.records import Drop, Pair
from emuedit.training.batches.latent_files import group_seed

FLOAT, TEXT, IMAGE = datasets.Value("float64"), datasets.Value("string"), datasets.Image()
SCORES = ("clip_sim_source", "clip_sim_target", "clip_sim_dir", "clip_sim_image", "dinov2_sim", "ssim")
FEATURES: dict[str, dict[str, Any]] = {
    "instructpix2pix": {
        "original_prompt": TEXT, "original_image": IMAGE, "edit_prompt": TEXT, "edited_prompt": TEXT, "edited_image": IMAGE,
    },
    "magicbrush": {
        "img_id": TEXT, "turn_index": datasets.Value("int32"), "source_img": IMAGE, "mask_img": IMAGE, "instruction": TEXT,
        "target_img": IMAGE,
    },
    "ultraedit": {
        **dict.fromkeys(SCORES, FLOAT), "source_caption": TEXT, "target_caption": TEXT, "idx": datasets.Value("int64"),
        "edit_prompt": TEXT, "edit_object": TEXT, "source_image": IMAGE, "edited_image": IMAGE, "mask_image": IMAGE,
    },
}  # fmt: skip


def picture(value: int, size: tuple[int, int] = (24, 16), mode: str = "RGB", kind: str = "PNG") -> dict[str, Any]:
    """A picture that is neither square nor symmetric: red increases to the right, green downwards."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 5, y * 9, np.full_like(x, value)], -1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return {"bytes": stream.getvalue(), "path": None}


def transparent_mask(left_px: int, size: tuple[int, int] = (24, 16)) -> dict[str, Any]:
    """A MagicBrush mask: the picture, transparent from the left edge to `left_px`."""
    pixels = np.array(Image.open(io.BytesIO(picture(9, size)["bytes"])).convert("RGBA"))
    pixels[:, :left_px, 3] = 0
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": "mask.png"}


def ip2p_row(n: int, **changes: Any) -> dict[str, Any]:
    texts = {"original_prompt": "a dog", "edit_prompt": f"make it {n}", "edited_prompt": f"a dog, {n}"}
    return texts | {"original_image": picture(n), "edited_image": picture(100 + n)} | changes


def magicbrush_row(n: int, **changes: Any) -> dict[str, Any]:
    row = {"img_id": f"{n // 2}", "turn_index": n % 2 + 1, "instruction": f"turn {n}", "mask_img": transparent_mask(6)}
    return row | {"source_img": picture(n), "target_img": picture(100 + n)} | changes


def ultraedit_row(n: int, **changes: Any) -> dict[str, Any]:
    row = {"source_caption": "a dog", "target_caption": "a cat", "idx": n, "edit_prompt": f"do {n}", "edit_object": "dog"}
    pictures = {"source_image": picture(n), "edited_image": picture(100 + n), "mask_image": picture(n, mode="L")}
    return row | dict.fromkeys(SCORES, 0.5) | pictures | changes


def write_dataset(
    folder: Path, name: str, rows: list[dict[str, Any]], split: str = "train", without: tuple[str, ...] = ()
) -> Path:
    """Write the file as on the hub: `data/train-00000-of-00001.parquet`."""
    features = {key: kind for key, kind in FEATURES[name].items() if key not in without}
    data = datasets.Dataset.from_list([{key: row[key] for key in features} for row in rows], datasets.Features(features))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def make_options(name: str, size: int | None = None) -> ImportOptions:
    return ImportOptions(get_format(name), size, "all local", lambda texts: ["local"] * len(texts))


def import_folder(folder: Path, name: str, out: Path, size: int | None = None) -> tuple[list[Pair], list[Drop]]:
    import_pairs(make_options(name, size), find_parquet_files(folder, "*.parquet"), out, out.parent)
    return list(read_folder(out, Pair, verify=True)), list(read_folder(out, Drop, "dropped-*.parquet"))


def test_instructpix2pix(tmp_path: Path) -> None:
    rows = [
        ip2p_row(0),
        ip2p_row(1, edit_prompt=" make\tit  1 ", original_image=picture(1, mode="RGBA")),
        ip2p_row(2, original_prompt="a cat"),
    ]
    pairs, drops = import_folder(write_dataset(tmp_path / "in", "instructpix2pix", rows), "instructpix2pix", tmp_path / "out")
    assert not drops
    assert [pair.instruction for pair in pairs] == ["make it 0", "make it 1", "make it 2"]
    assert [(pair.source_caption, pair.target_caption) for pair in pairs][1] == ("a dog", "a dog, 1")
    assert {(pair.task, pair.model_revision, pair.mask) for pair in pairs} == {
        ("local", "timbrooks/instructpix2pix-clip-filtered", None)
    }
    assert pairs[0].recipe == {"kind": "import", "layout": "instructpix2pix"}
    np.testing.assert_array_equal(decode_png(pairs[1].source)[3, 20], (100, 27, 1))
    np.testing.assert_array_equal(decode_png(pairs[1].target)[3, 20], (100, 27, 101))
    families = [pair.parent_ids[1] for pair in pairs]
    assert families[0] == families[1] != families[2]
    assert 0 <= group_seed(families[0]) < 2**63  # the id has the form that training expects
    assert len({pair.instruction_id for pair in pairs}) == 3
    summary = read_summary(tmp_path / "out")
    assert (summary.params["source"], summary.params["licence"]) == ("timbrooks/instructpix2pix-clip-filtered", "not stated")
    assert "Licence: not stated." in (tmp_path / "out/card.md").read_text()


def test_magicbrush_masks_are_the_transparent_pixels(tmp_path: Path) -> None:
    rows = [
        magicbrush_row(0),
        magicbrush_row(1, mask_img=transparent_mask(12, (48, 32))),
        magicbrush_row(2, mask_img=None),
        magicbrush_row(3, mask_img=transparent_mask(3, (16, 16))),
    ]
    pairs, drops = import_folder(write_dataset(tmp_path / "in", "magicbrush", rows), "magicbrush", tmp_path / "out")
    masks = [None if pair.mask is None else decode_png(pair.mask) for pair in pairs]
    assert masks[0] is not None
    assert masks[1] is not None
    assert masks[2] is None
    assert (masks[0][:, :6] == 255).all()
    assert not masks[0][:, 6:].any()
    assert masks[1].shape == (16, 24)  # a mask of another resolution is resized
    assert (masks[1] > 127).mean() == 0.25
    assert [(drop.reason, drop.index, drop.source) for drop in drops] == [
        ("mask_shape_differs", 3, "train-00000-of-00001.parquet")
    ]
    assert pairs[1].recipe == {"kind": "import", "layout": "magicbrush", "img_id": "0", "turn_index": 2}
    assert pairs[0].parent_ids[1] == pairs[1].parent_ids[1] != pairs[2].parent_ids[1]  # turns of a session have one family
    assert {pair.source_caption for pair in pairs} == {""}


def test_ultraedit_scores_are_kept_and_masks_are_optional(tmp_path: Path) -> None:
    rows = [ultraedit_row(0, ssim=None, dinov2_sim=float("nan")), ultraedit_row(1)]
    pairs, _ = import_folder(write_dataset(tmp_path / "a", "ultraedit", rows), "ultraedit", tmp_path / "b")
    assert pairs[0].scores == dict.fromkeys(SCORES, 0.5) | {"ssim": None, "dinov2_sim": None}
    assert pairs[0].recipe["edit_object"] == "dog"
    np.testing.assert_array_equal(
        decode_png(pairs[1].mask or b""), np.array(Image.open(io.BytesIO(rows[1]["mask_image"]["bytes"])))
    )
    without_masks = write_dataset(tmp_path / "c", "ultraedit", rows, without=("edit_object", "mask_image"))
    pairs, _ = import_folder(without_masks, "ultraedit", tmp_path / "d")
    assert [(pair.mask, "edit_object" in pair.recipe) for pair in pairs] == [(None, False)] * 2


def test_dropped_rows_have_reasons(tmp_path: Path) -> None:
    rows = [
        ip2p_row(0),
        ip2p_row(1, edit_prompt=" "),
        ip2p_row(2, edit_prompt=None),
        ip2p_row(3, original_image={"bytes": b"no picture", "path": None}),
        ip2p_row(4, edited_image=None),
        ip2p_row(5, edited_image=picture(1, (16, 24))),
        ip2p_row(0, edited_prompt="another caption", original_image=picture(0, kind="TIFF")),  # the same pixels and words
        ip2p_row(0, edited_image=picture(7)),
    ]
    pairs, drops = import_folder(write_dataset(tmp_path / "in", "instructpix2pix", rows), "instructpix2pix", tmp_path / "out")
    assert len(pairs) == 2
    assert [(drop.index, drop.reason) for drop in drops] == [
        (1, "empty_instruction"), (2, "empty_instruction"), (3, "source_unreadable"), (4, "target_unreadable"),
        (5, "sizes_differ"), (6, "duplicate"),
    ]  # fmt: skip
    assert read_summary(tmp_path / "out").counts["dropped_empty_instruction"] == 2
    assert "| sizes_differ | 1 |" in (tmp_path / "out/card.md").read_text()


def test_a_size_crops_source_target_and_mask_alike(tmp_path: Path) -> None:
    pairs, _ = import_folder(
        write_dataset(tmp_path / "in", "magicbrush", [magicbrush_row(0)]), "magicbrush", tmp_path / "out", size=8
    )
    (pair,) = pairs
    source, target, mask = (decode_png(png or b"") for png in (pair.source, pair.target, pair.mask))
    assert (source.shape, target.shape, mask.shape) == ((8, 8, 3), (8, 8, 3), (8, 8))
    np.testing.assert_array_equal(source[..., :2], target[..., :2])  # the pixels are aligned
    np.testing.assert_allclose(source[4, [0, 7], 0], (5 * 4.5, 5 * 18.5), atol=3)  # columns 4 to 20 of 24 remain
    np.testing.assert_allclose(mask[4, [0, 1, 4, 7]], (255, 0, 0, 0), atol=35)  # the mask ends at 6: the first of eight columns


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_id": datasets.Value("string")}, r"unknown \['img_id'\]; name another format"),
        ({"edit_prompt": None}, r"missing \['edit_prompt'\]"),
        ({"edit_prompt": datasets.Value("int64")}, r"of another type \['edit_prompt: int64'\]"),
        ({"edited_image": TEXT}, "of another type"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    features = {key: kind for key, kind in (FEATURES["instructpix2pix"] | change).items() if kind is not None}
    data = datasets.Dataset.from_list([dict.fromkeys(features)], datasets.Features(features))
    data.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(FormatError, match=message):
        import_folder(tmp_path, "instructpix2pix", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_import_keeps_the_unfinished_work_of_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (write_dataset(tmp_path / name, "instructpix2pix", [ip2p_row(n)]) for n, name in enumerate("ab"))
    with monkeypatch.context() as patch:
        patch.setattr(pair_import, "publish", None)
        with pytest.raises(TypeError):
            import_pairs(make_options("instructpix2pix"), [*first.rglob("*.parquet")], tmp_path / "imported/a/train", tmp_path)
    (unfinished,) = (tmp_path / "scratch").rglob("shard-*.parquet")
    import_pairs(make_options("instructpix2pix"), [*second.rglob("*.parquet")], tmp_path / "imported/b/train", tmp_path)
    assert [*(tmp_path / "scratch").rglob("shard-*.parquet")] == [unfinished]
    import_pairs(make_options("instructpix2pix"), [*first.rglob("*.parquet")], tmp_path / "imported/a/train", tmp_path)
    assert not [*(tmp_path / "scratch").iterdir()]


def test_the_rows_of_a_shard_are_converted_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second row of each pair is finished first; the order and the duplicates are those of the file."""
    rows = [ip2p_row(0), ip2p_row(1), ip2p_row(0), ip2p_row(2, edit_prompt=" "), ip2p_row(3), ip2p_row(4)]
    folder = write_dataset(tmp_path / "in", "instructpix2pix", rows)
    monkeypatch.setattr(threads, "available_cores", lambda: 1)
    expected = import_folder(folder, "instructpix2pix", tmp_path / "expected")
    convert_row, both, n_done = ImportOptions.convert_row, threading.Barrier(2, timeout=20), []

    def convert(self: ImportOptions, row: Any, columns: Any) -> Any:
        if both.wait() == 0:
            time.sleep(0.05)
        n_done.append(1)
        return convert_row(self, row, columns)

    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    monkeypatch.setattr(ImportOptions, "convert_row", convert)
    assert import_folder(folder, "instructpix2pix", tmp_path / "out") == expected
    assert [drop.reason for drop in expected[1]] == ["duplicate", "empty_instruction"]
    assert len(n_done) == len(rows)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes() for name in names)


def test_files_are_selected_and_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "in", "magicbrush", [magicbrush_row(0)])
    write_dataset(folder, "magicbrush", [magicbrush_row(1)], split="dev")
    assert [file.name for file in find_parquet_files(folder, "dev-*.parquet")] == ["dev-00000-of-00001.parquet"]
    with pytest.raises(FormatError, match="want Parquet files test-"):
        find_parquet_files(folder, "test-*.parquet")
    with pytest.raises(FormatError, match="which has other contents"):
        import_folder(folder, "magicbrush", folder)
    for _ in range(2):  # an earlier import may be replaced
        assert len(import_folder(folder, "magicbrush", tmp_path / "out")[0]) == 2


def test_another_split_of_magicbrush_is_imported_only_if_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Editors are evaluated on the split dev."""
    monkeypatch.chdir(tmp_path)
    for number, split in enumerate(("train", "dev")):
        write_dataset(tmp_path / "in", "magicbrush", [magicbrush_row(number)], split)
    for options, numbers in (([], [0]), (["--files", "*.parquet"], [1, 0])):
        assert cli.main(["import", "magicbrush", "in", "out", "--task", "local", *options]) == 0
        assert [pair.instruction for pair in read_folder("out", Pair)] == [f"turn {number}" for number in numbers]


def test_options_of_no_effect_and_absolute_patterns_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An instruction was ignored, and an absolute pattern ended with a traceback."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "in", "magicbrush", [magicbrush_row(0)], "train")
    for options, message in (
        (["--instruction", "x"], "want --instruction for folder only, got it for magicbrush, whose rows have their own"),
        (["--files", f"{tmp_path}/in/*.parquet"], f"want a pattern relative to in, got {tmp_path}/in/*.parquet; name the files"),
    ):
        assert cli.main(["import", "magicbrush", "in", "out", "--task", "local", *options]) == 2
        assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_tasks_have_exactly_one_origin() -> None:
    with pytest.raises(FormatError, match="want one origin for the tasks of ultraedit, got none; add --task or --router"):
        ImportOptions(get_format("ultraedit"), None, "none", None)
    with pytest.raises(FormatError, match="omit --task and --router"):
        make_options("emuedit")
    with pytest.raises(FormatError, match="want images of 8 pixels per side or more, got 0"):
        make_options("ultraedit", size=0)
    with pytest.raises(FormatError, match="want one of the formats instructpix2pix, "):
        get_format("omniedit")
    assert {pair_format.get_format(name).name for name in FORMAT_NAMES} == set(FORMAT_NAMES)
