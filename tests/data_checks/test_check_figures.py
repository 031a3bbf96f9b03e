"""Every check passes on sound data and fails, alone, on data made to breach it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emuedit.config import ParamsError, load
from emuedit.data_checks import distribution_drift, pair_profile, reference_profile
from emuedit.data_checks.check_bounds import CHECKS, CheckBound, judge
from emuedit.data_checks.check_figures import DRIFT, SIGNIFICANCE, measure_checks
from emuedit.data_checks.pair_profile import Embeddings, ProfileError
from emuedit.data_checks.reference_profile import Reference
from emuedit.stages.validation import ValidationParams
from tests.data_checks.profiles import PICTURES, TEXTS, make_profile, make_vectors

REFERENCE = Reference("former", make_profile(), make_vectors(1))
BREACHES: dict[str, dict[str, Any]] = {
    "damaged": {"texts": TEXTS | {"damaged": 1.0}},
    "other_language": {"texts": TEXTS | {"other_language": 0.5}},
    "instruction_words": {"texts": TEXTS | {"instruction_words": 0.2}},
    "caption_words": {"texts": TEXTS | {"caption_words": 0.3}},
    "duplicate_instructions": {"texts": TEXTS | {"duplicate_instructions": 0.1}},
    "most_repeated_instruction": {"texts": TEXTS | {"most_repeated_instruction": 0.7}},
    "equal_pictures": {"pictures": PICTURES | {"equal_pictures": 0.1}},
    "unchanged_pictures": {"pictures": PICTURES | {"unchanged_pictures": 0.1}},
    "picture_sizes": {"pictures": PICTURES | {"picture_sizes": 0.1}},
    "picture_modes": {"pictures": PICTURES | {"picture_modes": 0.3}},
    "picture_text": {"pictures": PICTURES | {"picture_text": 0.5}},
    "kept_pairs": {"tasks": {"local": 50, "remove": 40}},
    "pairs_per_task": {"tasks": {"local": 400, "remove": 300, "add": 9}},
    "missing_tasks": {"tasks": {"local": 400, "add": 300}},
    "largest_task": {"tasks": {"local": 400, "remove": 60}},
    "task_balance": {"tasks": {"local": 4000, "remove": 20}},
    "new_words": {"words": {"make": 400, "dragon": 300}},
    "task_drift": {"tasks": {"local": 300, "remove": 60, "add": 500}},
}  # fmt: skip
ALSO_BREACHED = {"task_balance": {"largest_task", "task_drift"}, "missing_tasks": {"task_drift"}}


def breached(changes: dict[str, Any], reference: Reference = REFERENCE, shift: float = 0.0) -> set[str]:
    measured = measure_checks(make_profile(**changes), make_vectors(2, shift=shift), reference, {"local", "remove"})
    return {result.name for result in judge(measured, {}) if result.is_breach}


def test_sound_data_pass_every_check() -> None:
    assert breached({}) == set()
    assert set(BREACHES) | {"picture_drift"} == set(CHECKS)


@pytest.mark.parametrize("check", BREACHES)
def test_data_that_breach_a_check_fail_it(check: str) -> None:
    assert breached(BREACHES[check]) == {check, *ALSO_BREACHED.get(check, ())}


def test_other_pictures_are_a_drift() -> None:
    assert breached({}, shift=0.8) == {"picture_drift"}


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_drift_of_either_side_is_a_drift(side: str) -> None:
    embeddings = make_vectors(2) | {side: make_vectors(2, shift=0.8)[side]}
    measured = measure_checks(make_profile(), embeddings, REFERENCE, {"local", "remove"})
    assert {result.name for result in judge(measured, {}) if result.is_breach} == {"picture_drift"}
    assert measured["picture_drift"].note.startswith(f"of the {side} images")


def of_two_kinds(n_first: int, shift: float, seed: int) -> Embeddings:
    """64 similar source images, moved by `shift`; `n_first` of their targets are of one kind, the others of the opposite one."""
    random = np.random.default_rng(seed)
    source = random.normal(0, 0.02, (64, 8)) + np.eye(8)[0] + shift * np.eye(8)[1]
    target = random.normal(0, 0.02, (64, 8)) + np.where(np.arange(64)[:, None] < n_first, 1, -1) * np.eye(8)[2]
    pair = {"source": source, "target": target}
    return {side: (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for side, v in pair.items()}


def test_a_larger_cmmd_within_chance_does_not_hide_a_drift_of_the_other_side() -> None:
    reference = Reference("former", make_profile(), of_two_kinds(32, 0.0, 1))
    drifted, same = (of_two_kinds(40, shift, 2) for shift in (0.15, 0.0))
    cmmd = {side: distribution_drift.cmmd(vectors, reference.embeddings[side]) for side, vectors in drifted.items()}
    assert 0 < cmmd["source"] < cmmd["target"]
    measured = measure_checks(make_profile(), drifted, reference, ())["picture_drift"]
    assert measured.value == pytest.approx(cmmd["source"])
    assert measured.note == "of the source images, p = 0.001"
    measured = measure_checks(make_profile(), same, reference, ())["picture_drift"]
    assert measured.value == 0.0
    assert re.fullmatch(
        r"within chance: CMMD .* of the source images \(p = .*\), .* of the target images \(p = .*\)", measured.note
    )


def test_two_tests_find_no_more_drift_by_chance_than_one() -> None:
    """One of the p-values is at most SIGNIFICANCE, but not at most half of it."""
    p_values = iter((0.5, 0.8 * SIGNIFICANCE, 0.5, 0.5 * SIGNIFICANCE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution_drift, "cmmd_p_value", lambda x, y: next(p_values))
        values = [measure_checks(make_profile(), make_vectors(2, shift=0.8), REFERENCE, ())["picture_drift"].value for _ in "ab"]
    assert values[0] == 0.0
    assert values[1]


def repeated(n_images: int, n_times: int, seed: int, shift: float = 0.0) -> Embeddings:
    """Each caption's source image `n_times`, with targets that resemble it."""
    source = np.repeat(make_vectors(seed, n_images, shift)["source"], n_times, axis=0)
    target = source + np.random.default_rng(seed).normal(0, 0.02, source.shape).astype(np.float32)
    return {"source": source, "target": target / np.linalg.norm(target, axis=1, keepdims=True)}


@pytest.mark.parametrize("seed", [1, 3, 5, 7, 9])
def test_many_pairs_of_the_same_few_source_images_are_no_drift(seed: int) -> None:
    reference = Reference("former", make_profile(), repeated(13, 8, seed))
    measured = measure_checks(make_profile(), repeated(13, 8, seed + 1), reference, ())["picture_drift"]
    assert measured.value == 0.0
    assert "within chance" in measured.note


def test_a_drift_of_few_source_images_with_many_pairs_is_found() -> None:
    reference = Reference("former", make_profile(), repeated(13, 8, 1))
    measured = measure_checks(make_profile(), repeated(13, 8, 2, shift=1.6), reference, ())["picture_drift"]
    assert measured.value is not None
    assert measured.value > 1


def test_without_a_reference_the_drift_checks_pass_and_say_so() -> None:
    reference = reference_profile.resolve(None, Path(), "reports/validation")
    measured = measure_checks(make_profile(words={"dragon": 1}), make_vectors(2, shift=9), reference, {"local"})
    results = {result.name: result for result in judge(measured, {})}
    for name in DRIFT:
        assert results[name].verdict == "pass"
        assert results[name].note.startswith("no reference")


def test_without_a_readable_image_there_is_no_drift() -> None:
    for embeddings in ({}, {side: np.zeros((0, 1), np.float32) for side in ("source", "target")}):
        drift = measure_checks(make_profile(), embeddings, REFERENCE, ())["picture_drift"]
        assert drift.value is None
        assert drift.note == "not comparable: 0 source images here, 64 in the reference; want 8"


@pytest.mark.parametrize(("changes", "n"), [({"clip": "other"}, 64), ({}, 3)])
def test_embeddings_that_cannot_be_compared_are_no_drift(changes: dict[str, Any], n: int) -> None:
    reference = Reference("former", make_profile(**changes), make_vectors(1, n, shift=9))
    drift = measure_checks(make_profile(), make_vectors(2), reference, ())["picture_drift"]
    assert drift.value is None
    assert drift.note.startswith("not comparable")


def test_bounds_warn_before_they_fail_and_can_be_moved_and_accepted() -> None:
    measured = measure_checks(make_profile(tasks={"local": 200, "remove": 200}), make_vectors(2), REFERENCE, ())

    def verdict(bound: CheckBound | None = None, *accepted: str) -> str:
        bounds = {} if bound is None else {"kept_pairs": bound}
        return next(result.verdict for result in judge(measured, bounds, accepted) if result.name == "kept_pairs")

    assert verdict() == "warn"
    assert verdict(CheckBound(warn=400)) == "pass"  # on the bound
    assert verdict(CheckBound(fail=401)) == "fail"
    assert verdict(CheckBound(fail=401), "kept_pairs") == "accepted"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{accept: [new_word]}", "want checks from damaged, .*; got new_word"),
        ("{bounds: {kept: {fail: 1}}}", "want checks from damaged, .*; got kept"),
        ("{bounds: {kept_pairs: {min: 1}}}", "unknown key 'bounds.kept_pairs.min'.*known: fail, warn"),
        ("{on_breach: ignore}", "'stop', 'warn' or 'ask'"),
        ("{instruction_words: [9, 2]}", "want .fewest, most. words"),
    ],
)
def test_params_that_name_nothing_are_errors(tmp_path: Path, section: str, message: str) -> None:
    world = (Path(__file__).parents[2] / "params.yaml").read_text().split("\n\n")[1]
    (tmp_path / "params.yaml").write_text(f"{world}\nvalidation: {section}\n")
    with pytest.raises(ParamsError, match=message):
        load(ValidationParams, "validation", tmp_path / "params.yaml")


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    profile, vectors = make_profile(examples={"damaged": ["ä"]}), make_vectors(1)
    pair_profile.write(tmp_path, profile, vectors)
    read_profile, read_vectors = pair_profile.read(tmp_path)
    assert read_profile == profile
    assert {name: array.shape for name, array in read_vectors.items()} == {"source": (64, 8), "target": (64, 8)}
    assert abs(read_vectors["source"] - vectors["source"]).max() < 1e-3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "got no profile.json"), ('{"format": 0}', "want a profile of format 1"), ('{"format": 1}', "is not a profile"),
        ('{"format"', "is not a profile"), ("[]", "is not a profile"), ('"\\udcff', "is not a profile"),
    ],
)  # fmt: skip
def test_a_folder_without_a_profile_is_an_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content:
        (tmp_path / "profile.json").write_text(content, errors="surrogateescape")  # one of them is cut inside a letter
    with pytest.raises(ProfileError, match=message):
        reference_profile.resolve(".", tmp_path, "reports/validation")


@pytest.mark.parametrize("name", ["profile.json", "embeddings.safetensors"])
def test_a_cut_profile_is_an_error(tmp_path: Path, name: str) -> None:
    pair_profile.write(tmp_path, make_profile(), make_vectors(1))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ProfileError, match=f"{name} is not a profile"):
        pair_profile.read(tmp_path)


@pytest.mark.parametrize("name", ["profile.json", "embeddings.safetensors"])
def test_a_profile_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair_profile.write(tmp_path, make_profile(), make_vectors(1))
    replace = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if target.name == name:
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=name):
        pair_profile.write(tmp_path, make_profile(sample=9), make_vectors(1))
    assert pair_profile.read(tmp_path)[0] == make_profile()
    assert not list(tmp_path.glob(".*"))
