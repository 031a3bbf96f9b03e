from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from toyworld.reading import ATTRIBUTES, Reading, compare, drift, faithfulness, read
from toyworld.reading.scene_classifier import LOOKS, recognise
from toyworld.scenes.palette import BACKGROUNDS, CONDITIONS, STYLES
from toyworld.scenes.render import images
from toyworld.scenes.scene import EMPTY, Scenes, numbers, scenes

N = 100
AT_LEAST = dict.fromkeys(ATTRIBUTES, 0.97) | {"everything": 0.92}


@pytest.fixture(scope="module")
def held_out() -> Scenes:
    return scenes(numbers("held_out", 5000, N))


@pytest.fixture(scope="module")
def readings(held_out: Scenes) -> list[Reading]:
    return read(images(held_out))


def test_recovers_every_attribute(held_out: Scenes) -> None:
    found = faithfulness(images(held_out), held_out)
    short = {name: found[name] for name, least in AT_LEAST.items() if found[name] < least}
    assert not short
    assert found["n_everything"] == N
    assert found["n_kind"] == held_out.present.sum()


def test_is_not_fooled_by_a_blur(held_out: Scenes) -> None:
    some = held_out[:60]
    soft = gaussian_filter(images(some), (0, 0.6, 0.6, 0))
    found = faithfulness(soft, some)
    assert min(found[name] for name in ATTRIBUTES) >= 0.9


def test_notices_what_is_not_there(held_out: Scenes) -> None:
    """The captions of other pictures do not fit: a judge that always agrees would be found out here."""
    other = held_out[np.roll(np.arange(N), 1)]
    found = faithfulness(images(held_out)[:60], other[:60])
    assert found["everything"] == 0
    assert found["background"] < 0.3
    assert found["kind"] < 0.3


def test_exact_places_are_free_but_cells_are_not(held_out: Scenes, readings: list[Reading]) -> None:
    n = int(np.flatnonzero(held_out.count == 1)[0])
    shifted = replace(held_out, x=held_out.x + 1)
    assert compare(readings[n], shifted, n).everything
    elsewhere = replace(held_out, cell=(held_out.cell + 1) % 5)
    agreement = compare(readings[n], elsewhere, n)
    assert [name for name, right in agreement.named() if not right] == ["cell"]


def test_what_cannot_be_seen_is_none(held_out: Scenes, readings: list[Reading]) -> None:
    n = int(np.flatnonzero(held_out.present[:, 0] & (held_out.kind[:, 0] < 8))[0])
    nothing = replace(readings[n], objects=())
    missing = compare(nothing, held_out, n).objects[0]
    assert not missing.kind
    assert missing.colour is None
    assert missing.big is None
    there = compare(readings[n], held_out, n).objects[0]
    assert there.kind
    assert there.variant is None
    assert there.texture is not None


def test_same_pictures_same_readings(held_out: Scenes, readings: list[Reading]) -> None:
    backwards = read(images(held_out[:20])[::-1].copy())[::-1]
    assert [str(one) for one in backwards] == [str(one) for one in readings[:20]]
    assert read(images(held_out[:5])) == readings[:5]


def test_confidences_are_between_nought_and_one_and_high_where_right(held_out: Scenes, readings: list[Reading]) -> None:
    sure = [v for one in readings for v in (*one.sure.values(), *(v for seen in one.objects for v in seen.sure.values()))]
    assert min(sure) >= 0
    assert max(sure) <= 1
    clear = [r for n, r in enumerate(readings) if compare(r, held_out, n).everything]
    right = [seen.sure["kind"] for r in clear for seen in r.objects]
    assert np.median(right) > 0.8


def test_noise_is_read_with_low_confidence() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    for one in read(noise):
        assert max(one.sure.values()) < 0.2
        assert all(max(seen.sure.values()) < 0.2 for seen in one.objects)


def test_an_empty_background_holds_no_objects() -> None:
    drawn = scenes(numbers("held_out", 9000, len(LOOKS)))
    background, condition, style = LOOKS.T
    bare = replace(drawn, kind=np.full_like(drawn.kind, EMPTY), background=background, condition=condition, style=style)
    found = read(images(bare))
    assert np.mean([one.count == 0 for one in found]) >= 0.97
    assert np.mean([one.background == b for one, b in zip(found, background, strict=True)]) >= 0.97


def test_looks_are_all_there_are() -> None:
    drawn = scenes(numbers("train", 0, 3000))
    assert {tuple(row) for row in np.stack([drawn.background, drawn.condition, drawn.style], 1)} == {tuple(row) for row in LOOKS}
    assert len(LOOKS) == len(BACKGROUNDS) * (len(CONDITIONS) + len(STYLES) - 1)


def test_a_look_is_read_whatever_stands_in_it() -> None:
    held = scenes(numbers("held_out", 7000, 200))
    found = LOOKS[recognise(images(held).astype(np.float32) / 255).look]
    assert (found == np.stack([held.background, held.condition, held.style], 1)).mean(0).min() >= 0.98


def test_drift_is_measured_outside_only() -> None:
    before = np.zeros((2, 64, 64, 3), np.uint8)
    after = before.copy()
    after[:, :32] = 255
    upper = np.zeros((2, 64, 64), bool)
    upper[:, :32] = True
    assert drift(before, after, upper).tolist() == [0, 0]
    assert drift(before, after, ~upper).tolist() == [1, 1]
    assert drift(before, after, np.ones_like(upper)).tolist() == [0, 0]


def test_pictures_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \[N,64,64,3\], got float32"):
        read(np.zeros((1, 64, 64, 3), np.float32))
    with pytest.raises(ValueError, match=r"one picture a scene"):
        faithfulness(np.zeros((1, 64, 64, 3), np.uint8), scenes(numbers("held_out", 0, 2)))
