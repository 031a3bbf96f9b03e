"""Pictures larger than the editor's own size: edited smaller, composited back; small ones as they are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from emuedit.core.padding import padded_px
from emuedit.editor.any_size import _find_window, edit_any_size, working_size
from emuedit.editor.sampling_options import Edited, SamplingOptions
from emuedit.editor.settings import EditSettings

SETTINGS = EditSettings()


class Inverter:
    """Stands for an editor of 64 px that changes all pixels."""

    resolution_px, grid_px = 64, 4

    def sample(self, images: Tensor, *rest: Any) -> Edited:
        is_measured = isinstance(rest[-1], SamplingOptions) and rest[-1].measure_shifts
        return Edited(images + 0.5, (0.25 if is_measured else None,) * len(images))


class SquarePainter:
    """Stands for an editor of 64 px: paints what is brighter than 0.9 black, and records the sizes it got."""

    resolution_px, grid_px = 64, 4

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def sample(self, images: Tensor, instructions: Sequence[str], tasks: Sequence[str], *rest: Any) -> Edited:
        self.sizes.append(tuple(images.shape[-2:]))
        edited = torch.where((images > 0.9).all(1, keepdim=True), torch.full_like(images, -1.0), images)
        return Edited(edited, (None,) * len(images))


def photo(height: int, width: int, top: int, left: int, side: int) -> Tensor:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 0.5 - 0.25
    image[..., top : top + side, left : left + side] = 1.0
    return image


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        ((64, 64), (64, 64)),
        ((40, 24), (40, 24)),
        ((3000, 4000), (56, 72)),
        ((640, 640), (64, 64)),
        ((5000, 100), (452, 8)),
        ((65, 64), (64, 64)),
        ((100_000, 1), (1024, 4)),
        ((1, 100_000), (4, 1024)),
        ((1, 4096), (4, 1024)),
        ((2, 1024), (2, 1024)),
        ((1000, 3), (1000, 3)),
    ],
)
def test_the_working_size_has_the_proportions_and_the_pixels(picture: tuple[int, int], size: tuple[int, int]) -> None:
    assert working_size(*picture, resolution_px=64, grid_px=4) == size


@pytest.mark.parametrize(("height", "width"), [(8, 32_768), (1, 262_144), (20_000, 3), (500, 520), (16, 16)])
@pytest.mark.parametrize("resolution_px", [32, 512])
def test_the_padded_pixels_that_the_network_gets_are_bounded(height: int, width: int, resolution_px: int) -> None:
    """An image of 8 x 32768 px, of 512^2 pixels, was padded to eight times as many."""
    size = working_size(height, width, resolution_px, grid_px=64)
    assert padded_px(*size, 64) <= 2 * max(resolution_px, 64) ** 2
    if (height, width, resolution_px) in {(500, 520, 512), (16, 16, 32)}:
        assert size == (height, width)


def test_a_small_picture_is_edited_as_it_is() -> None:
    editor = SquarePainter()
    image = photo(40, 50, 10, 10, 8)
    result = edit_any_size(editor, image, ["a"], ["remove"], SETTINGS, [0]).images  # type: ignore[arg-type]
    assert editor.sizes == [(40, 50)]
    assert (result[..., 10:18, 10:18] == -1).all()


def test_a_large_photo_keeps_every_pixel_outside_the_edit() -> None:
    editor = SquarePainter()
    image = photo(1200, 1600, 400, 800, 200)
    result = edit_any_size(editor, image, ["a"], ["remove"], SETTINGS, [0]).images  # type: ignore[arg-type]
    assert editor.sizes == [(56, 72)]
    assert result.shape == image.shape
    assert (result[..., 440:560, 840:960] < -0.9).all()
    same = (result == image).all(1)[0]
    assert same[:350].all()
    assert same[:, :740].all()
    assert same.float().mean() > 0.95


def test_cropping_edits_a_small_object_again_at_its_own_resolution() -> None:
    editor = SquarePainter()
    image = photo(600, 800, 200, 300, 40)
    edges = {}
    for crop in (0, 1):
        settings = SETTINGS.with_changes({"crop": crop})
        result = edit_any_size(editor, image, ["a"], ["remove"], settings, [0]).images  # type: ignore[arg-type]
        edges[crop] = float((result[..., 200:240, 300:340] == -1).float().mean())
    assert editor.sizes[0] == editor.sizes[1] == (56, 72)
    assert max(editor.sizes[2]) <= 100, "the window is small"
    assert edges[1] > edges[0] + 0.2, "all of the object is painted, up to its edge"


def test_cropping_leaves_the_whole_picture_tasks_alone() -> None:
    editor = SquarePainter()
    edit_any_size(editor, photo(600, 800, 200, 300, 40), ["a"], ["style"], SETTINGS.with_changes({"crop": 1}), [0])  # type: ignore[arg-type]
    assert len(editor.sizes) == 1


def test_a_setting_names_another_size() -> None:
    editor = SquarePainter()
    edit_any_size(editor, photo(600, 800, 200, 300, 40), ["a"], ["local"], SETTINGS.with_changes({"resolution": 128}), [0])  # type: ignore[arg-type]
    assert editor.sizes == [(112, 148)]


def test_pictures_of_a_batch_are_composited_one_by_one() -> None:
    images = torch.cat([photo(300, 400, 50, 60, 60), photo(300, 400, 200, 300, 60)])
    results = edit_any_size(SquarePainter(), images, ["a", "b"], ["remove", "remove"], SETTINGS, [0, 1]).images  # type: ignore[arg-type]
    assert (results[0] == images[0])[:, 200:].all()
    assert (results[1] == images[1])[:, :100].all()
    assert (results != images).flatten(1).any(1).all()


def test_the_second_edit_fades_in_at_the_sides_of_its_window() -> None:
    class FirstPaintsThenInverts(SquarePainter):
        def sample(self, images: Tensor, *rest: Any) -> Edited:
            return super().sample(images, *rest) if not self.sizes else Inverter().sample(images, *rest)

    image = torch.full((1, 3, 600, 800), -0.5)
    image[..., 200:210, 300:310] = 1.0
    settings = SETTINGS.with_changes({"crop": 1, "resolution": 256, "border_px": 3})
    result = edit_any_size(FirstPaintsThenInverts(), image, ["a"], ["remove"], settings, [0]).images  # type: ignore[arg-type]
    change = (result - image)[0, 0]
    assert float(change.max()) == pytest.approx(0.5)
    assert max(float(change.diff(dim=dim).abs().max()) for dim in (0, 1)) == pytest.approx(0.5 / 4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("crop", [0, 1])
def test_a_shift_is_that_of_the_first_edit(crop: int) -> None:
    images = torch.cat([photo(600, 800, 200, 300, 40)] * 2)
    settings = SETTINGS.with_changes({"crop": crop})
    arguments: Any = (Inverter(), images, ["a", "b"], ["remove"] * 2, settings, [0, 1])
    assert edit_any_size(*arguments, SamplingOptions(measure_shifts=True)).shifts_px == (0.25, 0.25)
    assert edit_any_size(*arguments).shifts_px == (None, None), "not measured"


def test_the_task_decides_what_a_large_photo_gets_of_the_edit() -> None:
    """A change of light keeps its detail, and a new style replaces all pixels, also those that it leaves equal."""
    image = photo(600, 800, 200, 300, 40)[..., :280]  # without the bright square

    def detail(image: Tensor) -> float:
        return float(image.diff(dim=-1).abs().mean())

    light, other = (edit_any_size(Inverter(), image, ["a"], [task], SETTINGS, [0]).images for task in ("global", "local"))  # type: ignore[arg-type]
    assert detail(light) > 0.9 * detail(image)
    assert detail(other) < 0.5 * detail(image)
    image = photo(600, 800, 200, 300, 40)
    style, other = (edit_any_size(SquarePainter(), image, ["a"], [task], SETTINGS, [0]).images for task in ("style", "local"))  # type: ignore[arg-type]
    assert (style == image).float().mean() < 0.1
    assert (other == image).float().mean() > 0.9


def test_the_second_edit_has_the_inputs_and_options_of_its_image() -> None:
    calls: list[tuple[Any, ...]] = []
    all_options: list[SamplingOptions] = []

    class Recorder(SquarePainter):
        def sample(self, images: Tensor, instructions: Any, tasks: Any, settings: Any, seeds: Any, options: Any) -> Edited:
            calls.append((*instructions, *tasks, *seeds))
            all_options.append(options)
            return super().sample(images, instructions, tasks)

    images = torch.cat([photo(600, 800, 200, 300, 40), photo(600, 800, 400, 100, 40)])
    settings = SETTINGS.with_changes({"crop": 1})
    options = SamplingOptions(["x", "y"], torch.zeros(2, 4, 8, 8), report=print, measure_shifts=True)
    edit_any_size(Recorder(), images, ["a", "b"], ["remove", "local"], settings, [5, 6], options)  # type: ignore[arg-type]
    assert calls == [("a", "b", "remove", "local", 5, 6), ("a", "remove", 5), ("b", "local", 6)]
    assert all_options[0] == options
    assert [replace(second, report=None) for second in all_options[1:]] == [SamplingOptions(["x"]), SamplingOptions(["y"])]


class OneTimeEditor(SquarePainter):
    """Edits the first image only, and reports a step of each."""

    def sample(self, images: Tensor, *rest: Any) -> Edited:
        rest[-1].report(len(images))
        edited = super().sample(images, *rest)
        return edited if len(self.sizes) == 1 else Edited(images.clone(), (None,))


def test_a_second_edit_that_changes_nothing_leaves_the_first_one() -> None:
    image, reported = photo(600, 800, 200, 300, 40), list[int]()
    arguments: Any = (image, ["a"], ["remove"])
    options = SamplingOptions(report=reported.append)
    want = edit_any_size(OneTimeEditor(), *arguments, SETTINGS, [0], options).images  # type: ignore[arg-type]
    editor = OneTimeEditor()
    result = edit_any_size(editor, *arguments, SETTINGS.with_changes({"crop": 1}), [0], options).images  # type: ignore[arg-type]
    assert len(editor.sizes) == 2
    assert torch.equal(result, want)
    assert not torch.equal(result, image)
    assert reported == [1, 1, 0], "an image counts once"


class Autoencoder(SquarePainter):
    """Changes no latent; its decoder makes everything darker."""

    def sample(self, images: Tensor, instructions: Any, tasks: Any, settings: Any, seeds: Any, options: Any) -> Edited:
        decoded = 0.9 * images - 0.05
        return Edited(decoded, (None,) * len(images), decoded.clone() if options.keep_reconstructions else None)


@pytest.mark.parametrize("task", ["global", "color"])
def test_the_error_of_the_autoencoder_is_not_added_to_a_large_photo(task: str) -> None:
    image = photo(600, 800, 200, 300, 40)
    result = edit_any_size(Autoencoder(), image, ["a"], [task], SETTINGS, [0]).images  # type: ignore[arg-type]
    assert torch.equal(result, image)


class BlurringAutoencoder(SquarePainter):
    """Makes everything darker; its decoder loses half of the fine detail."""

    def sample(self, images: Tensor, instructions: Any, tasks: Any, settings: Any, seeds: Any, options: Any) -> Edited:
        mean = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        decoded = mean + 0.5 * (images - mean)
        return Edited(decoded - 0.1, (None,) * len(images), decoded if options.keep_reconstructions else None)


@pytest.mark.parametrize("against_reconstruction", [0, 1])
def test_the_detail_that_the_autoencoder_loses_stays_in_a_large_photo(against_reconstruction: int) -> None:
    image = photo(600, 800, 200, 300, 40) * 0.5
    settings = SETTINGS.with_changes({"against_reconstruction": against_reconstruction})
    result = edit_any_size(BlurringAutoencoder(), image, ["a"], ["global"], settings, [0]).images  # type: ignore[arg-type]

    def contrast(picture: Tensor) -> float:
        return float((picture[..., 1:] - picture[..., :-1]).abs().mean())

    assert contrast(result) == pytest.approx(contrast(image), rel=0.15)
    assert float((result - image).mean()) == pytest.approx(-0.1, abs=0.01)


def test_the_window_of_the_second_edit_has_a_margin_of_half_the_change() -> None:
    before, after = torch.zeros(1, 3, 60, 80), torch.zeros(1, 3, 60, 80)
    after[..., 20:40, 30:50] = 1.0
    assert _find_window(before, after, (600, 800), 64) == (..., slice(100, 500), slice(200, 600))
