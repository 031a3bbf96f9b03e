"""The change threshold of a learned task: chosen on examples, stored in its pack, and used for its edits only."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from emuedit.data.image_io import Pixels
from emuedit.editor import sampling, task_pack
from emuedit.editor.sampling import EditSampler
from emuedit.editor.settings import EditSettings
from emuedit.editor.task_pack import TaskPack
from emuedit.models import image_tensors
from emuedit.tasks import ALL_TASKS
from emuedit.training.learned_threshold import CANDIDATES, choose_change_threshold
from emuedit.training.task_inversion import LearnedTask
from tests.editor.tiny_pipelines import save_editor

SETTINGS = EditSettings(steps=1, image_guidance_scale=1.0, guidance_scale=1.0, against_reconstruction=0)
SIZE = 32
OBJECT = (slice(12, 20), slice(12, 20))


def scenes(n: int) -> Pixels:
    """Red squares on grey of different brightness."""
    pictures = np.full((n, SIZE, SIZE, 3), 120, np.uint8)
    pictures += np.arange(n, dtype=np.uint8)[:, None, None, None] * 8
    pictures[:, *OBJECT] = (200, 30, 30)
    return pictures


def on_white(pictures: Pixels, redrawn: int = 0) -> Pixels:
    """The squares on white; their channels differ by `redrawn` from the input, as if a network had drawn them again."""
    result = np.full_like(pictures, 255)
    result[:, *OBJECT] = pictures[:, *OBJECT] + np.array([0, redrawn, redrawn], np.uint8)
    return result


@pytest.fixture(scope="module")
def editor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_editor("toy", tmp_path_factory.mktemp("editor"), ALL_TASKS[:1])


@pytest.fixture
def learned(editor_folder: Path) -> tuple[EditSampler, LearnedTask]:
    sampler = sampling.load(editor_folder)
    return sampler, LearnedTask(torch.zeros(sampler.net.table.d_v), None, "mean", 1, 1.0, 0.5)


def draw(monkeypatch: pytest.MonkeyPatch, sampler: EditSampler, images: Pixels) -> None:
    """Let the editor's edits be these images."""
    drawn = image_tensors.from_uint8(images)

    def decode(z: Tensor) -> Tensor:
        return drawn[: len(z)].clone()

    monkeypatch.setattr(sampler.parts, "decode", decode)


@pytest.mark.slow
def test_a_task_that_keeps_objects_gets_a_threshold_above_the_error_of_redrawing_them(
    learned: tuple[EditSampler, LearnedTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, task = learned
    before = scenes(3)
    draw(monkeypatch, sampler, on_white(before, redrawn=30))  # d = 2 * 30 / 255 = 0.24 in the objects
    tasks = sampler.tasks
    threshold = choose_change_threshold(sampler, "cutout", task, before, on_white(before), ["cut out"] * 3, SETTINGS)
    assert threshold is not None
    assert 0.24 < threshold <= 0.6
    assert sampler.tasks == tasks
    assert not sampler.change_thresholds

    sampler.add_task("cutout", task.v, None, threshold)
    sampler.add_task("other", task.v)
    edited = sampler.sample(image_tensors.from_uint8(before), ["cut out"] * 3, ["cutout", "cutout", "other"], SETTINGS)
    pixels = image_tensors.to_uint8(edited.images)
    inside = (slice(14, 18), slice(14, 18))
    assert (pixels[:2, *inside] == before[:2, *inside]).all(), "pixels of the object are those of the input"
    assert (pixels[:2, :8, :8] == 255).all()
    assert (pixels[2, *inside] == on_white(before, redrawn=30)[2, *inside]).all(), "the threshold belongs to one task"
    sampler.remove_task("cutout")
    assert not sampler.change_thresholds


@pytest.mark.slow
def test_a_task_that_changes_every_pixel_gets_none(
    learned: tuple[EditSampler, LearnedTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, task = learned
    before = scenes(2)
    dimmed = before - np.uint8(16)  # d = 0.19: every candidate above it keeps pixels that must change
    draw(monkeypatch, sampler, dimmed)
    assert choose_change_threshold(sampler, "cutout", task, before, dimmed, ["dim it"] * 2, SETTINGS) is None
    off = SETTINGS.model_copy(update={"change_threshold": 0.0})
    assert choose_change_threshold(sampler, "cutout", task, before, before, ["x"] * 2, off) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contour", "outline"])
def test_the_threshold_is_compared_with_the_edits_that_the_task_has_without_it(
    name: str, learned: tuple[EditSampler, LearnedTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, a whole-image task such as contour keeps no pixel, and other tasks keep those that hardly change."""
    sampler, task = learned
    before = scenes(2)
    draw(monkeypatch, sampler, before - np.uint8(2))  # d = 6 / 255 = 0.024, below the threshold of the settings
    threshold = choose_change_threshold(sampler, name, task, before, before, ["draw it"] * 2, SETTINGS)
    distances: dict[float | None, float] = {}
    for alpha in (None, *CANDIDATES):
        sampler.add_task(name, task.v, None, alpha)
        edited = sampler.sample(image_tensors.from_uint8(before), ["draw it"] * 2, [name] * 2, SETTINGS).images
        distances[alpha] = float((edited - image_tensors.from_uint8(before)).abs().mean())
        sampler.remove_task(name)
    assert threshold == min(distances, key=lambda alpha: distances[alpha])
    assert (threshold is None) == (name == "outline")


@pytest.mark.slow
def test_an_edit_is_not_suppressed_because_it_is_inaccurate(
    learned: tuple[EditSampler, LearnedTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thin line that is drawn beside its place: without any line, the edit would be nearer to the result."""
    sampler, task = learned
    before = np.full((2, SIZE, SIZE, 3), 120, np.uint8)
    result, drawn = before.copy(), before.copy()
    result[:, 16, 4:28] = drawn[:, 17, 4:20] = drawn[:, 16, 20:28] = (190, 120, 120)
    draw(monkeypatch, sampler, drawn)
    threshold = choose_change_threshold(sampler, "cutout", task, before, result, ["draw a line"] * 2, SETTINGS)
    sampler.add_task("line", task.v, None, threshold)
    edited = sampler.sample(image_tensors.from_uint8(before), ["draw a line"] * 2, ["line"] * 2, SETTINGS)
    assert (image_tensors.to_uint8(edited.images)[:, 16, 22:26, 0] > 150).all(), "what is right stays"


@pytest.mark.slow
@pytest.mark.parametrize("opacity", [0.09, 0.02])
def test_a_subtle_edit_is_not_suppressed_because_it_is_noisy(
    opacity: float, learned: tuple[EditSampler, LearnedTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A faint watermark is removed from a fifth of the image; the rest of it is drawn again with noise."""
    sampler, task = learned
    noise = np.random.default_rng(0).normal(0, 10, (2, SIZE, SIZE, 3))
    result = np.full((2, SIZE, SIZE, 3), 110, np.uint8)
    before = result.copy()
    before[:, 4:28:8] += np.uint8((255 - 110) * opacity)
    before[:, 5:28:8] = before[:, 4:28:8]
    draw(monkeypatch, sampler, (result + noise).round().astype(np.uint8))
    threshold = choose_change_threshold(sampler, "cutout", task, before, result, ["remove the watermark"] * 2, SETTINGS)

    def share_made(alpha: float | None) -> float:
        sampler.add_task("unmark", task.v, None, alpha)
        images = image_tensors.from_uint8(before)
        edited = sampler.sample(images, ["remove the watermark"] * 2, ["unmark"] * 2, SETTINGS).images
        sampler.remove_task("unmark")
        to_do = image_tensors.from_uint8(result) - images
        return float(((edited - images) * to_do).sum() / to_do.square().sum())

    assert share_made(0.3) < 0.5 * share_made(None)
    assert share_made(threshold) >= 0.9 * min(share_made(None), 1)


@pytest.mark.slow
def test_a_threshold_of_zero_in_the_settings_turns_that_of_the_task_off(
    learned: tuple[EditSampler, LearnedTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, task = learned
    before = scenes(1)
    drawn = on_white(before, redrawn=30)
    draw(monkeypatch, sampler, drawn)
    sampler.add_task("cutout", task.v, None, max(CANDIDATES))
    for change_threshold, result in ((0.0, drawn), (3.0, before)):
        settings = SETTINGS.model_copy(update={"change_threshold": change_threshold, "border_px": 0})
        edited = sampler.sample(image_tensors.from_uint8(before), ["cut out"], ["cutout"], settings)
        assert (image_tensors.to_uint8(edited.images) == result).all(), "the higher threshold applies, and 0 is off"


def test_a_pack_stores_the_threshold_and_older_packs_have_none(tmp_path: Path) -> None:
    file = tmp_path / "cutout.safetensors"
    task_pack.save(TaskPack("cutout", torch.zeros(4), "0" * 16, 30, {}, change_threshold=0.45), file)
    assert task_pack.load(file).change_threshold == 0.45
    task_pack.save(TaskPack("cutout", torch.zeros(4), "0" * 16, 30, {}), file)
    assert task_pack.load(file).change_threshold is None
