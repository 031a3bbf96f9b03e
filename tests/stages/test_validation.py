import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emuedit.data.png import decode_png, encode_png
from emuedit.data.publish import read_folder, read_summary
from emuedit.data.records import Pair
from emuedit.data_checks import profile_maker
from emuedit.data_checks.profile_maker import DamagedVerdictsError
from emuedit.models import clip
from emuedit.runtime import seed_for
from emuedit.stages import validation
from emuedit.stages.validation import BreachError, ValidationParams, run
from tests.stages.coloured_pairs import PLACES, ColorClip, make_pairs, publish_kept
from tests.stages.workspace import load_params, read_files
from toyworld.edits import exact_dataset

Change = Callable[[list[Pair]], list[Pair]]
OUT = Path(validation.OUT)


@pytest.fixture
def toy_clip() -> None:
    """For tests that use the toy world's CLIP in place of one that knows colours."""


@pytest.fixture(autouse=True)
def color_clip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "toy_clip" not in request.fixturenames:
        monkeypatch.setattr(clip, "load", lambda name, device: ColorClip())


def make_params(**changes: Any) -> ValidationParams:
    return load_params(ValidationParams, "validation", **{"reference": None, "device": "cpu"} | changes)


def failed_checks(root: Path) -> set[str]:
    report = json.loads((root / OUT / "report.json").read_text())
    return {row["check"] for row in report["checks"] if row["verdict"] == "fail"}


def replaced(pair: Pair, **changes: Any) -> Pair:
    return dataclasses.replace(pair, **changes)


def grey(png: bytes) -> bytes:
    return encode_png(decode_png(png).mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8))


def shrink(png: bytes) -> bytes:
    return encode_png(decode_png(png)[::2, ::2].copy())


def brighter(pair: Pair) -> Pair:
    """With both pictures three levels brighter, which nobody sees."""
    source, target = (encode_png(np.minimum(decode_png(png), 250) + np.uint8(3)) for png in (pair.source, pair.target))
    return replaced(pair, source=source, target=target)


def shuffle(pairs: list[Pair]) -> list[Pair]:
    order = np.random.default_rng(0).permutation(len(pairs))
    return [replaced(pair, source=pairs[i].source, target=pairs[i].target) for pair, i in zip(pairs, order, strict=True)]


def rename(text: str) -> str:
    return text.replace("the", "zorb").replace(PLACES[0], "void")


TEXTS = ("instruction", "source_caption", "target_caption")
GERMAN = "ein {} Haus steht mitten in der kleinen Stadt und niemand weiss warum"
CHANGES: dict[str, Change] = {
    "other_language": lambda pairs: [
        replaced(p, source_caption=GERMAN.format(f"rotes {n}"), target_caption=GERMAN.format(f"blaues {n}"),
                 instruction=f"ändere die Farbe von Haus Nummer {n} in der Stadt") for n, p in enumerate(pairs)],
    "instruction_words": lambda pairs: [replaced(p, instruction="go") if n % 4 == 0 else p for n, p in enumerate(pairs)],
    "caption_words": lambda pairs: [replaced(p, target_caption=" ".join([p.target_caption] * 10)) for p in pairs],
    "duplicate_instructions": lambda pairs: [
        *pairs, *(replaced(p, instruction_id=f"again {p.instruction_id}", instruction=f"{p.instruction}!".upper(), seed=10**6 + n,
                           source=grey(p.source)) for n, p in enumerate(pairs[:40]))],
    "most_repeated_instruction": lambda pairs: [replaced(p, instruction="change the colour of the thing") for p in pairs],
    "equal_pictures": lambda pairs: [
        *pairs, *(brighter(replaced(p, instruction_id=f"again {p.id}", instruction=f"so {p.instruction}")) for p in pairs[:60])],
    "unchanged_pictures": lambda pairs: [replaced(p, target=p.source) if n % 10 == 0 else p for n, p in enumerate(pairs)],
    "picture_sizes": lambda pairs: [replaced(p, target=shrink(p.target)) if n % 10 == 0 else p for n, p in enumerate(pairs)],
    "picture_modes": lambda pairs: [
        replaced(p, source=grey(p.source), target=grey(brighter(p).target)) if n % 2 else p for n, p in enumerate(pairs)],
    "picture_text": shuffle,
    "pairs_per_task": lambda pairs: [*pairs, *(replaced(p, task="add", seed=10**6) for p in make_pairs(250)[241:245])],
    "kept_pairs": lambda pairs: pairs[:90],
    "damaged": lambda pairs: [replaced(p, source=p.source[:60]) if n == 7 else p for n, p in enumerate(pairs)],
}  # fmt: skip
ALSO_BREACHED = {"other_language": {"picture_text"}}
"""The fake CLIP knows the colours in English only."""


@pytest.mark.slow
def test_sound_data_pass_and_are_reported(tmp_path: Path) -> None:
    publish_kept(tmp_path, make_pairs(), **{"local.pairs": 150})
    summary = run(make_params(), tmp_path)
    assert summary.counts == {"pass": 18, "warn": 1, "accepted": 0, "fail": 0}  # fewer than 500 pairs
    profile = {"profile.json", "embeddings.safetensors"}
    assert set(read_files(tmp_path / OUT)) == {"report.md", "report.json", "report.png", "passed.json", "summary.json"} | profile
    report = (tmp_path / OUT / "report.md").read_text()
    assert report.startswith("# Validation of the kept pairs\n\n**warn**: 18 pass, 1 warn")
    assert "| kept_pairs | **warn** | 240 | < 500 | < 100 |" in report
    assert "| local | 150 | 120 | 50.0% | - |" in report
    with Image.open(tmp_path / OUT / "report.png") as picture:
        assert picture.width == 920


@pytest.mark.slow
@pytest.mark.parametrize("check", CHANGES)
def test_data_that_breach_a_check_stop_the_pipeline(check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pair, "id", property(lambda pair: f"{seed_for(pair.instruction_id, pair.seed):016x}"))
    publish_kept(tmp_path, CHANGES[check](make_pairs()))
    with pytest.raises(BreachError, match=r"the kept pairs fail \d of 19 checks: .*\n(.|\n)*set validation\.accept: \[") as error:
        run(make_params(sample_pairs=400), tmp_path)
    assert failed_checks(tmp_path) == {check, *ALSO_BREACHED.get(check, ())}
    assert f"\n  {check}: want at" in str(error.value)
    assert not (tmp_path / OUT / "passed.json").exists()
    assert not (tmp_path / OUT / "summary.json").exists()


@pytest.mark.slow
def test_a_task_of_which_nothing_was_kept_is_missed(tmp_path: Path) -> None:
    publish_kept(tmp_path, make_pairs(), **{"texture.pairs": 9})
    with pytest.raises(BreachError, match=r"missing_tasks: want at most 0 .*, got 1 \(texture\)"):
        run(make_params(), tmp_path)
    with pytest.raises(BreachError, match=r"set validation\.accept: \[new_words, missing_tasks\] in params.yaml"):
        run(make_params(accept=("new_words",)), tmp_path)


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_the_others_are_checked(tmp_path: Path) -> None:
    publish_kept(tmp_path, make_pairs())
    path = tmp_path / "data/pairs/shard-00001.parquet"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(BreachError, match="checks: damaged"):
        run(make_params(), tmp_path)
    report = json.loads((tmp_path / OUT / "report.json").read_text())
    assert report["examples"]["damaged"] == ["data/pairs/shard-00001.parquet is missing"]
    assert sum(row["kept"] for row in report["tasks"]) == 160
    path.write_bytes(content)
    assert run(make_params(), tmp_path).counts["fail"] == 0  # nothing that a damaged shard gave is kept

    verdicts = tmp_path / "data/dataset/shard-00000.parquet"
    shortened = verdicts.read_bytes()[:-9]
    verdicts.unlink()
    verdicts.write_bytes(shortened)
    shutil.rmtree(tmp_path / "scratch/validation-profile")  # to look for damage again
    with pytest.raises(DamagedVerdictsError, match=r"shard-00000\.parquet has the hash"):
        run(make_params(), tmp_path)


@pytest.mark.slow
def test_data_are_compared_with_the_report_of_another_run(tmp_path: Path) -> None:
    former, later = tmp_path / "former", tmp_path / "later"
    publish_kept(former, make_pairs())
    run(make_params(), former)
    params = make_params(reference=str(former / OUT), sample_pairs=400)
    publish_kept(later, make_pairs(480)[240:])
    assert run(params, later).params["compared_with"] == str(former / OUT)

    renamed = [
        replaced(pair, task={"local": "add"}.get(pair.task, pair.task), **{name: rename(getattr(pair, name)) for name in TEXTS})
        for pair in make_pairs(480)[240:]
    ]
    dark = [
        replaced(p, source=encode_png(decode_png(p.source) // 4), target=encode_png(decode_png(p.target) // 4)) for p in renamed
    ]
    publish_kept(later, dark)
    with pytest.raises(BreachError, match=r"checks: missing_tasks, .*new_words, task_drift, picture_drift"):
        run(params, later)
    report = (later / OUT / "report.md").read_text()
    assert "## New words\n\n2 words are not in the reference: zorb (" in report
    assert "| local | 0 | 0 | 0.0% | 50.0% |" in report


@pytest.mark.slow
def test_what_passed_says_only_that_it_passed(tmp_path: Path) -> None:
    """`train` depends on this file: moving a bound, or a warning, must not train again."""
    publish_kept(tmp_path, make_pairs())
    contents = set()
    for changes in ({}, {"bounds": {"kept_pairs": {"warn": 10}}}, {"bounds": {"kept_pairs": {"fail": 900}}, "on_breach": "warn"}):
        run(make_params(**changes), tmp_path)
        contents.add((tmp_path / OUT / "passed.json").read_bytes())
    assert len(contents) == 1


@pytest.mark.slow
def test_a_breach_can_be_accepted_and_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_kept(tmp_path, make_pairs(90))
    with pytest.raises(BreachError):
        run(make_params(), tmp_path)
    monkeypatch.setattr(clip, "load", lambda name, device: pytest.fail("want the profile of the run that stopped"))
    summary = run(make_params(accept=("kept_pairs",)), tmp_path)
    assert summary.counts["accepted"] == 1
    assert (
        "- **kept_pairs**: accepted in params.yaml; want at least 100 kept pairs, got 90."
        in (tmp_path / OUT / "report.md").read_text()
    )


@pytest.mark.slow
def test_another_bound_after_a_pass_reads_no_pairs_and_other_limits_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_kept(tmp_path, make_pairs())
    run(make_params(), tmp_path)
    profile = read_files(tmp_path / OUT)["profile.json"]
    measured: list[int] = []
    make = profile_maker.make
    monkeypatch.setattr(profile_maker, "make", lambda *values: (measured.append(1), make(*values))[1])
    summary = run(make_params(bounds={"kept_pairs": {"warn": 10}}), tmp_path)
    assert not measured
    assert summary.counts["warn"] == 0
    assert read_files(tmp_path / OUT)["profile.json"] == profile
    run(make_params(min_side_px=16), tmp_path)
    assert measured == [1]
    publish_kept(tmp_path, make_pairs(200))
    run(make_params(), tmp_path)
    assert measured == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["profile.json", "embeddings.safetensors"])
def test_a_profile_that_was_cut_is_measured_again(name: str, tmp_path: Path) -> None:
    publish_kept(tmp_path, make_pairs(90))
    with pytest.raises(BreachError):
        run(make_params(), tmp_path)
    (file,) = (tmp_path / "scratch/validation-profile").rglob(name)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    run(make_params(accept=("kept_pairs",)), tmp_path)
    assert (tmp_path / OUT / name).read_bytes() == content


@pytest.mark.slow
def test_on_breach_warn_goes_on_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_kept(tmp_path, make_pairs(90))
    assert run(make_params(on_breach="warn"), tmp_path).counts["fail"] == 1
    assert "continuing (validation.on_breach: warn); the kept pairs fail 1 of 19 checks: kept_pairs" in capsys.readouterr().err
    assert (tmp_path / OUT / "passed.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("", False), (None, False)])
def test_on_breach_ask_asks_where_there_is_a_terminal(
    answer: str | None, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_kept(tmp_path, make_pairs(90))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    if goes_on:
        assert run(make_params(on_breach="ask"), tmp_path).counts["fail"] == 1
    else:
        with pytest.raises(BreachError, match=r"validation\.accept"):
            run(make_params(on_breach="ask"), tmp_path)


@pytest.mark.slow
def test_several_candidates_of_an_instruction_are_no_duplicates(tmp_path: Path) -> None:
    pairs = make_pairs()
    publish_kept(
        tmp_path, [*pairs, *(replaced(p, seed=10**6 + n, target=p.source, source=p.target) for n, p in enumerate(pairs))]
    )
    run(make_params(), tmp_path)
    report = json.loads((tmp_path / OUT / "report.json").read_text())
    assert [row["figure"] for row in report["checks"] if row["check"] == "duplicate_instructions"] == [0]


@pytest.mark.slow
def test_equal_data_give_equal_bytes_and_no_mlflow_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for name in ("first", "second"):
        publish_kept(tmp_path / name, make_pairs())
        run(make_params(), tmp_path / name)
    assert read_files(tmp_path / "first" / OUT, "summary.json") == read_files(tmp_path / "second" / OUT, "summary.json")
    keys = {read_summary(tmp_path / name / OUT).shards["report.json"] for name in ("first", "second")}
    assert len(keys) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("toy_clip")
def test_the_toy_worlds_clip_knows_pictures_whose_captions_were_exchanged(tmp_path: Path) -> None:
    exact_dataset.write_dataset(tmp_path / "exact", {"local": 40, "remove": 40, "background": 40})
    summary = run(make_params(bounds={"kept_pairs": {"fail": 50}}), tmp_path / "exact")
    assert summary.counts["fail"] == 0
    publish_kept(tmp_path / "shuffled", shuffle(list(read_folder(tmp_path / "exact/data/pairs", Pair))))
    with pytest.raises(BreachError, match="checks: picture_text"):
        run(make_params(), tmp_path / "shuffled")
