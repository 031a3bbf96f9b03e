"""Pairs of the vision tasks whose image is the user's, in place of a generated one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emuedit.data.file_hashes import hash_file
from emuedit.data.png import decode_png
from emuedit.data.publish import publish, read_folder, scratch_folder
from emuedit.data.records import Caption, Drop, Instruction, Pair
from emuedit.data.shards import write_shard
from emuedit.stages import instructions, pairs
from emuedit.stages.pairs import group_by_source, run
from emuedit.synthesis.candidate import source_key
from emuedit.synthesis.shard_sources import SourceImageError
from tests.stages.scripted_llm import UseLLM
from tests.stages.scripted_llm import make_params as make_instructions_params
from tests.stages.test_pairs import BLUE, STAR, make_instruction, make_params, publish_instructions
from toyworld.edits.exact_edits import build_edits

EDITS = build_edits("detect", "train", 0, 2)
TURNED_RIGHT = 6
"""EXIF orientation of a camera that was turned, see `image_io`."""


def photo(n: int) -> np.ndarray:
    """A scene of 64 x 64 in the centre of a picture of 64 x 96."""
    return np.pad(EDITS.before[n], ((0, 0), (16, 16), (0, 0)), constant_values=128)


def write_photos(root: Path) -> list[Instruction]:
    """Two photographs, the second turned by its EXIF orientation; and vision tasks for both, from captions that name them."""
    (root / "photos").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = TURNED_RIGHT
    Image.fromarray(photo(0)).save(root / "photos/0.png")
    Image.fromarray(np.rot90(photo(1)).copy()).save(root / "photos/1.png", exif=turned)
    rows = []
    for n in range(2):
        image = {"image": f"photos/{n}.png", "image_hash": hash_file(root / f"photos/{n}.png")}
        caption, name = EDITS.input_captions[n], EDITS.objects[n]
        detect = make_instruction("detect", caption, f"{caption} with a box", (name, name))
        from_map = make_instruction("sketch", f"a sketch of {caption}", caption, (None, None), reverse=True)
        rows += [replace(detect, **image), replace(from_map, **image)]
    return rows


GENERATED = make_instruction("local", STAR, BLUE, ("red star", "blue star"))
GENERATED_DETECT = make_instruction("detect", EDITS.input_captions[0], "a box", (EDITS.objects[0], EDITS.objects[0]))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the pairs of two photographs and of two generated images, in shards of both."""
    folder = tmp_path_factory.mktemp("photos")
    publish_instructions(folder, [*write_photos(folder), GENERATED, GENERATED_DETECT])
    run(make_params(instructions_per_shard=6), folder)
    return folder


def pairs_of(root: Path) -> dict[str, Pair]:
    return {pair.instruction_id: pair for pair in read_folder(root / pairs.OUT, Pair, verify=True)}


@pytest.mark.slow
def test_the_users_image_is_the_source_upright_and_cropped_to_its_centre(root: Path) -> None:
    pair_of = pairs_of(root)
    for instruction in read_folder(root / pairs.IN, Instruction):
        if instruction.image is None:
            continue
        n = int(Path(instruction.image).stem)
        pair = pair_of[instruction.id]
        photograph, drawn = (pair.target, pair.source) if instruction.reverse else (pair.source, pair.target)
        np.testing.assert_array_equal(decode_png(photograph), EDITS.before[n])
        assert drawn != photograph
        assert pair.recipe == {
            "kind": "annotate", "candidate": 0, "image": instruction.image, "image_hash": instruction.image_hash,
        }  # fmt: skip
        assert pair.seed == 0
        assert pair.scores["clip_source"] is not None


@pytest.mark.slow
def test_the_box_is_drawn_around_the_object_of_the_photograph(root: Path) -> None:
    pair_of = pairs_of(root)
    detect = next(
        row for row in read_folder(root / pairs.IN, Instruction) if row.task == "detect" and row.image == "photos/0.png"
    )
    target = decode_png(pair_of[detect.id].target).astype(int)
    changed = np.abs(target - EDITS.before[0]).max(-1) > 0
    exact = np.abs(EDITS.exact[0].astype(int) - EDITS.before[0]).max(-1) > 0
    assert 0 < changed.mean() < 0.5
    drawn, expected = np.nonzero(changed.any(1))[0], np.nonzero(exact.any(1))[0]
    assert abs(drawn.mean() - expected.mean()) < 8


def test_instructions_without_an_image_still_generate(root: Path) -> None:
    pair_of = pairs_of(root)
    assert pair_of[GENERATED.id].recipe["kind"] == "soft_mask"
    assert pair_of[GENERATED_DETECT.id].seed != 0
    assert set(pair_of[GENERATED_DETECT.id].recipe) == {"kind", "candidate"}
    assert not np.array_equal(decode_png(pair_of[GENERATED_DETECT.id].source), EDITS.before[0]), "the caption of the photograph"


@pytest.mark.slow
def test_photographs_alone_generate_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emuedit.synthesis import batching

    monkeypatch.setattr(batching, "generate_sources", lambda *_: pytest.fail("nothing is to be generated"))
    publish_instructions(tmp_path, write_photos(tmp_path))
    assert run(make_params(), tmp_path).counts["pairs"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("change", ["changed", "deleted"])
def test_an_image_that_is_not_what_the_stage_captions_read_is_an_error(change: str, tmp_path: Path) -> None:
    publish_instructions(tmp_path, write_photos(tmp_path))
    if change == "changed":
        Image.fromarray(photo(1)).save(tmp_path / "photos/0.png")
    else:
        (tmp_path / "photos/0.png").unlink()
    with pytest.raises(SourceImageError, match=r"want the image .*photos/0.png with the hash .*, got .*; restore it, or run the"):
        run(make_params(), tmp_path)


def test_instructions_of_one_image_are_in_one_shard_whatever_their_captions(tmp_path: Path) -> None:
    photographs = write_photos(tmp_path)
    other_caption = replace(photographs[0], source_caption="another caption")
    shards = group_by_source([*photographs, other_caption, GENERATED, GENERATED_DETECT], 1)
    keys = [{source_key(instruction) for instruction in shard} for shard in shards]
    assert [len(key) for key in keys] == [1, 1, 1, 1]
    assert sorted(map(len, shards)) == [1, 1, 2, 3]


def test_vision_tasks_use_the_image_of_the_caption_and_other_tasks_do_not(tmp_path: Path, use_llm: UseLLM) -> None:
    captions: list[Any] = [Caption("one dog", "c.csv", 0, "photos/0.png", "0123"), Caption("two dogs", "c.csv", 1)]
    scratch = scratch_folder(tmp_path, "captions", "f")
    write_shard(scratch / "shard-00000.parquet", captions, Caption)
    publish(scratch, tmp_path / instructions.IN, "captions", {}, {})
    use_llm()
    instructions.run(make_instructions_params(), tmp_path)
    edits = list(read_folder(tmp_path / instructions.OUT, Instruction, verify=True))
    assert {(edit.caption_id, edit.task): (edit.image, edit.image_hash) for edit in edits} == {
        (captions[0].id, "remove"): (None, None), (captions[0].id, "add"): (None, None),
        (captions[0].id, "sketch"): ("photos/0.png", "0123"),
        **{(captions[1].id, task): (None, None) for task in ("remove", "add", "sketch")},
    }  # fmt: skip
    assert not list(read_folder(tmp_path / instructions.OUT, Drop, "dropped-*.parquet"))
