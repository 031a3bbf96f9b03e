"""The stage `validation` on generated pairs mixed with imported ones, which may have no captions and one shared instruction."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from emuedit.data.png import encode_png
from emuedit.data.records import Pair
from emuedit.models import clip
from emuedit.stages import validation
from emuedit.stages.validation import ValidationParams
from tests.stages.coloured_pairs import COLORS, ColorClip, make_pairs, make_picture, publish_kept
from tests.stages.workspace import load_params

N_IMPORTED = 450
"""Distinct pictures that `make_picture` has beside those of the generated pairs."""


@pytest.fixture(autouse=True)
def color_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "load", lambda name, device: ColorClip())


def import_pairs(instructions: Sequence[str], **changes: Any) -> list[Pair]:
    """Pairs of distinct images, as `emuedit import` makes them of images without captions."""
    pairs, colors = [], list(COLORS)
    for number, instruction in enumerate(instructions):
        family = f"family{changes.get('family', number)}"
        pictures = [encode_png(make_picture(colors[(number + k) % len(colors)], 240 + number)) for k in (0, 1)]
        pairs.append(
            Pair(
                instruction_id=f"imported{number}", parent_ids=(f"imported{number}", family), task="background",
                instruction=instruction,
                source_caption=changes.get("caption", ""), target_caption=changes.get("caption", ""), seed=-1,
                model_revision="folder", recipe={"kind": "import"}, source=pictures[0], target=pictures[1], mask=None, scores={},
            )
        )  # fmt: skip
    return pairs


def checks_of(root: Path, generated: Sequence[Pair], imported: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """Check -> its row in the report."""
    publish_kept(root, generated, imported=imported)
    params = load_params(ValidationParams, "validation", reference=None, device="cpu", on_breach="warn", sample_pairs=400)
    validation.run(params, root)
    report = json.loads((root / validation.OUT / "report.json").read_text())
    return {row["check"]: row for row in report["checks"]}


def failed(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, row in checks.items() if row["verdict"] == "fail"}


@pytest.mark.slow
def test_imported_pairs_without_captions_and_with_one_instruction_pass(tmp_path: Path) -> None:
    checks = checks_of(tmp_path, make_pairs(), import_pairs(["put it on white"] * N_IMPORTED))
    assert failed(checks) == set()
    assert (checks["caption_words"]["figure"], checks["duplicate_instructions"]["figure"]) == (0, 0)
    assert checks["caption_words"]["note"] == f"without {2 * N_IMPORTED} empty captions of imported pairs"
    assert checks["most_repeated_instruction"]["note"] == f"without {N_IMPORTED} instructions of imported pairs"
    assert checks["other_language"]["note"].endswith(" imported pairs without captions")
    report = (tmp_path / validation.OUT / "report.md").read_text()
    assert "| instructions | 690 |" in report
    assert "| captions | 480 |" in report, "empty captions have no length"


@pytest.mark.slow
def test_one_instruction_for_every_task_of_generated_pairs_is_repeated(tmp_path: Path) -> None:
    repeated = [dataclasses.replace(pair, instruction="change the colour of the thing") for pair in make_pairs()]
    checks = checks_of(tmp_path, repeated, import_pairs([f"put it on shelf {n}" for n in range(N_IMPORTED)]))
    assert failed(checks) == {"most_repeated_instruction"}
    assert checks["most_repeated_instruction"]["figure"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("caption_words", lambda pair: dataclasses.replace(pair, target_caption="house")),
        ("caption_words", lambda pair: dataclasses.replace(pair, target_caption="")),
        ("instruction_words", lambda pair: dataclasses.replace(pair, instruction="go")),
        ("duplicate_instructions", lambda pair: dataclasses.replace(pair, instruction="do it", source_caption="a red house",
                                                                    target_caption="a blue house")),
    ],
)  # fmt: skip
def test_many_imported_pairs_do_not_hide_faults_of_generated_ones(
    check: str, change: Callable[[Pair], Pair], tmp_path: Path
) -> None:
    """Of the generated pairs more than the bound allows are faulty, of all pairs fewer."""
    n_changed = 110 if check == "caption_words" else 30
    pairs = [change(pair) if n < n_changed else pair for n, pair in enumerate(make_pairs())]
    texts = [f"put it on shelf number {n} in the garden" for n in range(N_IMPORTED)]
    assert check in failed(checks_of(tmp_path, pairs, import_pairs(texts, caption="a blue mug stands on a red shelf in a room")))


@pytest.mark.slow
def test_equal_texts_of_one_imported_image_are_duplicates_and_of_images_with_one_caption_not(tmp_path: Path) -> None:
    again = import_pairs(["put it on white"] * N_IMPORTED, family="of all")
    assert "duplicate_instructions" in failed(checks_of(tmp_path / "imported", make_pairs(), again))
    photos = [
        dataclasses.replace(pair, instruction="mark the mug", source_caption="a red mug", target_caption="a blue mug",
                            recipe={"image": f"{n}.jpg", "image_hash": f"{n:016x}"})
        for n, pair in enumerate(make_pairs())
    ]  # fmt: skip
    assert failed(checks_of(tmp_path / "photos", photos, ())) == {"most_repeated_instruction"}


@pytest.mark.slow
def test_what_imported_pairs_do_not_have_is_not_measured_without_generated_ones(tmp_path: Path) -> None:
    checks = checks_of(tmp_path, [], import_pairs(["put it on white"] * 200))
    assert failed(checks) == {"largest_task"}, "there is only one task"
    absent = {name for name, row in checks.items() if row["note"].startswith("without") and row["figure"] is None}
    assert absent == {"caption_words", "other_language", "most_repeated_instruction", "picture_text"}
