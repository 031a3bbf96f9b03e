from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from toyworld.reading import ATTRIBUTES, Reading, accuracy, compare, drift, faithfulness, read_scenes, scene_references
from toyworld.reading.scene_classifier import classify_scenes
from toyworld.reading.scene_references import SCENE_CLASSES
from toyworld.scenes.palette import BACKGROUNDS, CONDITIONS, STYLES
from toyworld.scenes.render import images
from toyworld.scenes.scene import EMPTY, Scenes, generate_scenes, scene_numbers
from toyworld.training.fit_scene_references import fit

N = 100
MIN_ACCURACY = dict.fromkeys(ATTRIBUTES, 0.97) | {"everything": 0.92}


@pytest.fixture(scope="module")
def held_out() -> Scenes:
    return generate_scenes(scene_numbers("held_out", 5000, N))


@pytest.fixture(scope="module")
def readings(held_out: Scenes) -> list[Reading]:
    return read_scenes(images(held_out))


@pytest.mark.slow
def test_reads_every_attribute_from_renders(held_out: Scenes, readings: list[Reading]) -> None:
    shares = accuracy(readings, held_out)
    too_low = {name: shares[name] for name, minimum in MIN_ACCURACY.items() if shares[name] < minimum}
    assert not too_low
    assert shares["n_everything"] == N
    assert shares["n_kind"] == held_out.present.sum()


@pytest.mark.slow
def test_reads_blurred_renders(held_out: Scenes) -> None:
    scenes = held_out[:60]
    blurred = gaussian_filter(images(scenes), (0, 0.6, 0.6, 0))
    shares = faithfulness(blurred, scenes)
    assert min(shares[name] for name in ATTRIBUTES) >= 0.9


@pytest.mark.slow
def test_other_scenes_do_not_agree(held_out: Scenes, readings: list[Reading]) -> None:
    """The pictures do not agree with the scenes of other pictures: a comparison that always agrees would fail here."""
    other = held_out[np.roll(np.arange(N), 1)]
    shares = accuracy(readings, other)
    assert shares["everything"] == 0
    assert shares["background"] < 0.3
    assert shares["kind"] < 0.3


@pytest.mark.slow
def test_positions_are_compared_by_cell(held_out: Scenes, readings: list[Reading]) -> None:
    n = int(np.flatnonzero(held_out.count == 1)[0])
    shifted = replace(held_out, x=held_out.x + 1)
    assert compare(readings[n], shifted, n).all_correct
    other_cell = replace(held_out, cell=(held_out.cell + 1) % 5)
    agreement = compare(readings[n], other_cell, n)
    assert [name for name, correct in agreement.attributes() if not correct] == ["cell"]


@pytest.mark.slow
def test_attributes_that_do_not_apply_are_none(held_out: Scenes, readings: list[Reading]) -> None:
    n = int(np.flatnonzero(held_out.present[:, 0] & (held_out.kind[:, 0] < 8))[0])
    without_objects = replace(readings[n], objects=())
    missing = compare(without_objects, held_out, n).objects[0]
    assert not missing.kind
    assert missing.colour is None
    assert missing.big is None
    matched = compare(readings[n], held_out, n).objects[0]
    assert matched.kind
    assert matched.variant is None
    assert matched.texture is not None


@pytest.mark.slow
def test_reading_does_not_depend_on_the_batch(held_out: Scenes, readings: list[Reading]) -> None:
    reversed_batch = read_scenes(images(held_out[:20])[::-1].copy())[::-1]
    assert [str(reading) for reading in reversed_batch] == [str(reading) for reading in readings[:20]]
    assert read_scenes(images(held_out[:5])) == readings[:5]


@pytest.mark.slow
def test_confidences_are_in_the_unit_interval_and_high_for_correct_readings(held_out: Scenes, readings: list[Reading]) -> None:
    confidences = [v for reading in readings for v in reading.confidence.values()]
    confidences += [v for reading in readings for seen_object in reading.objects for v in seen_object.confidence.values()]
    assert min(confidences) >= 0
    assert max(confidences) <= 1
    correct = [reading for n, reading in enumerate(readings) if compare(reading, held_out, n).all_correct]
    kind_confidences = [seen_object.confidence["kind"] for reading in correct for seen_object in reading.objects]
    assert np.median(kind_confidences) > 0.8


@pytest.mark.slow
def test_noise_is_read_with_low_confidence() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    for reading in read_scenes(noise):
        assert max(reading.confidence.values()) < 0.2
        assert all(max(seen_object.confidence.values()) < 0.2 for seen_object in reading.objects)


@pytest.mark.slow
def test_no_objects_are_read_from_empty_backgrounds() -> None:
    scenes = generate_scenes(scene_numbers("held_out", 9000, len(SCENE_CLASSES)))
    background, condition, style = SCENE_CLASSES.T
    empty = replace(scenes, kind=np.full_like(scenes.kind, EMPTY), background=background, condition=condition, style=style)
    empty_readings = read_scenes(images(empty))
    assert np.mean([reading.count == 0 for reading in empty_readings]) >= 0.97
    assert np.mean([reading.background == b for reading, b in zip(empty_readings, background, strict=True)]) >= 0.97


def test_scene_classes_are_complete() -> None:
    scenes = generate_scenes(scene_numbers("train", 0, 3000))
    classes = np.stack([scenes.background, scenes.condition, scenes.style], 1)
    assert {tuple(row) for row in classes} == {tuple(row) for row in SCENE_CLASSES}
    assert len(SCENE_CLASSES) == len(BACKGROUNDS) * (len(CONDITIONS) + len(STYLES) - 1)


@pytest.mark.slow
def test_the_file_of_references_is_what_the_code_computes() -> None:
    """Eigenvectors are defined up to their sign, so what does not depend on it is compared."""
    stored, computed = scene_references.load(), fit()
    for a, b in ((stored.whitening, computed.whitening), (stored.mean, computed.mean)):
        np.testing.assert_allclose(a @ a.T, b @ b.T, rtol=1e-5, atol=1e-6 * np.abs(b @ b.T).max())
    np.testing.assert_allclose(stored.typical_max, computed.typical_max, rtol=1e-5)


@pytest.mark.slow
def test_scene_class_is_read_whatever_the_objects() -> None:
    scenes = generate_scenes(scene_numbers("held_out", 7000, 200))
    predicted = SCENE_CLASSES[classify_scenes(images(scenes).astype(np.float32) / 255).scene_class]
    assert (predicted == np.stack([scenes.background, scenes.condition, scenes.style], 1)).mean(0).min() >= 0.98


def test_drift_is_measured_outside_of_the_region_only() -> None:
    before = np.zeros((2, 64, 64, 3), np.uint8)
    after = before.copy()
    after[:, :32] = 255
    upper = np.zeros((2, 64, 64), bool)
    upper[:, :32] = True
    assert drift(before, after, upper).tolist() == [0, 0]
    assert drift(before, after, ~upper).tolist() == [1, 1]
    assert drift(before, after, np.ones_like(upper)).tolist() == [0, 0]


def test_pictures_of_another_dtype_or_number_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \[N,64,64,3\], got float32"):
        read_scenes(np.zeros((1, 64, 64, 3), np.float32))
    with pytest.raises(ValueError, match=r"one image per scene"):
        faithfulness(np.zeros((1, 64, 64, 3), np.uint8), generate_scenes(scene_numbers("held_out", 0, 2)))
