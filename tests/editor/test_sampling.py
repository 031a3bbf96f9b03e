from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emuedit.core import change_threshold, diffusion, guidance
from emuedit.editor import sampling
from emuedit.editor.sampling import EditSampler
from emuedit.editor.sampling_options import SamplingOptions
from emuedit.editor.settings import EditSettings
from emuedit.editor.unet import Prediction, extend_unet
from emuedit.models import objective
from emuedit.models.text_to_image import TextCondition
from emuedit.tasks import UnknownTaskError
from tests.editor.tiny_pipelines import D_V, KINDS, build_editor_unet

MakeSampler = Callable[..., EditSampler]
INSTRUCTIONS, TASKS = ["make it red", "add a star", "a ring"], ["local", "add", "sketch"]
SETTINGS = EditSettings(steps=3, image_guidance_scale=1.3, guidance_scale=3.0, composite=0, change_threshold=0.0)
UNGUIDED = EditSettings(steps=4, image_guidance_scale=1.0, guidance_scale=1.0, composite=0, change_threshold=0.0)


def pictures(n: int, height: int, width: int) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_guidance_equals_three_separate_predictions(kind: str, make_sampler: MakeSampler) -> None:
    """The sampler has one forward per step for all terms; the reference here makes each prediction by itself."""
    sampler, images = make_sampler(kind), pictures(2, 16, 16)
    settings = SETTINGS.with_changes({"preserve": 0.5, "guidance_rescale": 0.7})
    got = sampler.sample(images, INSTRUCTIONS[:2], TASKS[:2], settings, [3, 4]).images
    parts, net = sampler.parts, sampler.net
    v, text = net.table.rows(TASKS[:2]), parts.encode_text(INSTRUCTIONS[:2])
    c_I, null = parts.encode(images), parts.null_text(2)
    parts.scheduler.set_timesteps(3)
    z_t = parts.initial_noise([torch.Generator().manual_seed(seed) for seed in (3, 4)], (16, 16))
    with torch.no_grad():
        for t in parts.scheduler.timesteps:
            e_null, e_image = net(z_t, t, torch.zeros_like(c_I), null, v).e, net(z_t, t, c_I, null, v).e
            e_full, change_logits = net(z_t, t, c_I, text, v)
            e = guidance.rescale(guidance.two_conditions(e_null, e_image, e_full, 1.3, 3.0), e_full, 0.7)
            levels, predicted = objective.noise_levels(parts.scheduler, t), objective.prediction_type_of(parts.scheduler)
            e_source = diffusion.prediction_for_clean(c_I, z_t, *levels, predicted)
            e = guidance.blend_with_source(e, e_source, change_logits.sigmoid(), 0.5)
            z_t = parts.scheduler.step(e, t, z_t, return_dict=False)[0]
    torch.testing.assert_close(got, parts.decode(z_t), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_sample_depends_on_its_own_inputs_alone(make_sampler: MakeSampler) -> None:
    sampler, images = make_sampler(), pictures(3, 16, 16)
    batch = sampler.sample(images, INSTRUCTIONS, TASKS, SETTINGS, [3, 4, 5]).images
    for i in range(3):
        alone = sampler.sample(images[i : i + 1], INSTRUCTIONS[i : i + 1], TASKS[i : i + 1], SETTINGS, [3 + i]).images
        torch.testing.assert_close(alone, batch[i : i + 1], rtol=1e-4, atol=1e-4)
    assert torch.equal(sampler.sample(images, INSTRUCTIONS, TASKS, SETTINGS, [3, 4, 5]).images, batch)
    inputs: dict[str, Any] = {"images": images, "instructions": INSTRUCTIONS, "tasks": TASKS, "seeds": [3, 4, 5]}
    changes: dict[str, Any] = {
        "images": images.flip(3), "instructions": INSTRUCTIONS[::-1], "tasks": TASKS[::-1], "seeds": [6, 7, 8],
    }  # fmt: skip
    for name, value in changes.items():
        other = sampler.sample(**(inputs | {name: value}), settings=SETTINGS).images
        assert (other - batch)[0].abs().max() > 1e-3, f"{name} has no effect"


def test_seeds_count_up_from_the_seed_of_the_settings(make_sampler: MakeSampler) -> None:
    sampler, images = make_sampler(), pictures(3, 16, 16)
    got = sampler.sample(images, INSTRUCTIONS, TASKS, SETTINGS.with_changes({"seed": 7})).images
    assert torch.equal(got, sampler.sample(images, INSTRUCTIONS, TASKS, SETTINGS, [7, 8, 9]).images)


def test_progress_is_reported_after_every_step(make_sampler: MakeSampler) -> None:
    sampler, reported = make_sampler(), list[int]()
    sampler.sample(pictures(2, 16, 16), INSTRUCTIONS[:2], TASKS[:2], SETTINGS, options=SamplingOptions(report=reported.append))
    assert reported == [2, 2, 2]


def test_pictures_beyond_the_pixels_at_once_are_edited_afterwards(make_sampler: MakeSampler) -> None:
    sampler, images, reported = make_sampler(), pictures(3, 16, 16), list[int]()
    want = sampler.sample(images, INSTRUCTIONS, TASKS, SETTINGS, [3, 4, 5]).images
    sampler.max_pixels_per_batch = 2 * 16 * 16
    arguments = (images, INSTRUCTIONS, TASKS, SETTINGS, [3, 4, 5], SamplingOptions(report=reported.append))
    torch.testing.assert_close(sampler.sample(*arguments).images, want, rtol=1e-4, atol=1e-4)
    assert reported == [2, 2, 2, 1, 1, 1]
    sampler.max_pixels_per_batch = 1
    sampler.sample(*arguments)
    assert reported[6:] == [1] * 9


class CopyingNetwork(torch.nn.Module):
    """Predicts the picture itself: v = (sqrt(a) z_t - z) / sqrt(1 - a)."""

    def __init__(self, sampler: EditSampler) -> None:
        super().__init__()
        self.table, self.alpha_bar = sampler.net.table, sampler.parts.scheduler.alphas_cumprod

    def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor) -> Prediction:
        a = self.alpha_bar[t]
        return Prediction((a.sqrt() * z_t - c_I) / (1 - a).sqrt(), torch.zeros_like(z_t[:, :1]))


class NoChangeNetwork(torch.nn.Module):
    """Predicts noise, and that nothing changes."""

    def __init__(self, sampler: EditSampler) -> None:
        super().__init__()
        self.table = sampler.net.table

    def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor) -> Prediction:
        return Prediction(torch.randn_like(z_t), torch.full_like(z_t[:, :1], -50.0))


class LeftHalfNetwork(torch.nn.Module):
    """Predicts latents of 0.5 everywhere, and a change in the left half with logits of +-50; or, without a head, no change."""

    def __init__(self, sampler: EditSampler, has_head: bool = True) -> None:
        super().__init__()
        self.table, self.scheduler, self.has_head = sampler.net.table, sampler.parts.scheduler, has_head

    def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor) -> Prediction:
        change_logits = torch.full_like(z_t[:, :1], -50.0)
        change_logits[..., : z_t.shape[-1] // 2] = 50
        levels, predicted = objective.noise_levels(self.scheduler, t), objective.prediction_type_of(self.scheduler)
        e = diffusion.prediction_for_clean(torch.full_like(z_t, 0.5), z_t, *levels, predicted)
        return Prediction(e, change_logits if self.has_head else None)


def edited_latents(
    sampler: EditSampler, net: torch.nn.Module, images: Tensor, settings: EditSettings, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """The latents [B, C, h, w] of an edit by this network, before they are decoded."""
    latents: list[Tensor] = []
    decode = sampler.parts.decode
    with monkeypatch.context() as patches:
        patches.setattr(sampler.parts, "decode", lambda z: (latents.append(z.clone()), decode(z))[1])
        patches.setattr(sampler, "net", net)
        sampler.sample(images, INSTRUCTIONS[: len(images)], TASKS[: len(images)], settings)
    return latents[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "objective_name", "zero_snr"),
    [
        ("toy", "base", False), ("sd15", "base", False), ("sd15", "v_prediction", True), ("sd15", "sample", False),
        ("sd15", "sample", True), ("sdxl", "flow", False),
    ],
)  # fmt: skip
def test_the_source_is_preserved_where_no_change_is_predicted(
    kind: str, objective_name: Any, zero_snr: bool, make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The left half becomes what the network predicts, the right half a blend of that with the source."""
    sampler, images = make_sampler(kind), pictures(2, 16, 16)
    sampler.parts.scheduler = objective.configure_scheduler(sampler.parts.scheduler, objective_name, zero_snr)
    c_I = sampler.parts.encode(images)
    for preserve in (0.0, 0.5, 1.0):
        settings = UNGUIDED.with_changes({"preserve": preserve})
        z = edited_latents(sampler, LeftHalfNetwork(sampler), images, settings, monkeypatch)
        half = z.shape[-1] // 2
        torch.testing.assert_close(z[..., :half], torch.full_like(z[..., :half], 0.5), rtol=0, atol=0.05)
        right = torch.lerp(torch.full_like(c_I, 0.5), c_I, preserve)[..., half:]
        # SD1.5's own schedule ends above alpha_bar = 1, but no noise of it may stay where nothing changes
        torch.testing.assert_close(z[..., half:], right, rtol=0, atol=1e-4 if preserve == 1 else 0.05)


@pytest.mark.parametrize("objective_name", ["base", "flow"])
def test_without_a_change_mask_head_nothing_is_preserved(
    objective_name: Any, make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`preserve` has no effect: everything becomes what the network predicts."""
    sampler, images = make_sampler("sd15"), pictures(2, 16, 16)
    sampler.parts.scheduler = objective.configure_scheduler(sampler.parts.scheduler, objective_name)
    net = LeftHalfNetwork(sampler, has_head=False)
    z = edited_latents(sampler, net, images, UNGUIDED.with_changes({"preserve": 1.0}), monkeypatch)
    torch.testing.assert_close(z, torch.full_like(z, 0.5), rtol=0, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_real_architecture_edits_with_flow_matching_and_without_a_head(kind: str, make_base_model: Any) -> None:
    """The guided edit is finite and depends on the instruction."""
    base_model = make_base_model(kind)
    net = build_editor_unet(base_model)
    net.unet = extend_unet(base_model.unet, D_V, change_mask=False)
    base_model.scheduler = objective.configure_scheduler(base_model.scheduler, "flow")
    sampler, images = EditSampler(net.eval(), base_model, "0" * 16), pictures(2, 16, 16)
    first, second = (sampler.sample(images, [text, text], TASKS[:2], SETTINGS, [3, 4]).images for text in INSTRUCTIONS[:2])
    assert first.isfinite().all()
    assert (first - second).abs().max() > 1e-3


def test_epsilon_with_zero_terminal_snr_is_refused(make_sampler: MakeSampler) -> None:
    """A folder whose scheduler was changed by hand: an error, and not pictures of NaN."""
    sampler = make_sampler("sd15")
    scheduler = sampler.parts.scheduler
    sampler.parts.scheduler = type(scheduler).from_config(scheduler.config, rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="zero terminal SNR, got epsilon"):
        sampler.sample(pictures(1, 16, 16), INSTRUCTIONS[:1], TASKS[:1], SETTINGS)


def test_pixels_that_change_less_than_the_threshold_keep_their_value(make_sampler: MakeSampler) -> None:
    sampler, images = make_sampler(), pictures(2, 16, 16)
    without = sampler.sample(images, INSTRUCTIONS[:2], TASKS[:2], SETTINGS).images
    changed = change_threshold.exceeds_threshold(images, without, alpha=1.0)
    assert 0 < changed.float().mean() < 1
    settings = SETTINGS.with_changes({"change_threshold": 1.0, "against_reconstruction": 0, "border_px": 0})
    got = sampler.sample(images, INSTRUCTIONS[:2], TASKS[:2], settings).images
    assert torch.equal(got, torch.where(changed, without, images))
    results = [sampler.sample(images, INSTRUCTIONS[:2], ["style", "background"], case).images for case in (SETTINGS, settings)]
    assert [torch.equal(*pair) for pair in zip(*results, strict=True)] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_that_changes_nothing_returns_the_picture_bit_for_bit(
    kind: str, make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the autoencoder's own error is, here that of random weights."""
    sampler, images = make_sampler(kind), pictures(2, 16, 20)
    monkeypatch.setattr(sampler, "net", NoChangeNetwork(sampler))
    settings = UNGUIDED.with_changes({"change_threshold": 0.03, "preserve": 1.0})
    assert torch.equal(sampler.sample(images, INSTRUCTIONS[:2], TASKS[:2], settings, [3, 4]).images, images)
    paper = settings.with_changes({"against_reconstruction": 0})
    assert not torch.equal(sampler.sample(images, INSTRUCTIONS[:2], TASKS[:2], paper, [3, 4]).images, images)


@pytest.mark.parametrize("size", [(16, 16), (18, 31), (7, 40), (5, 3)])
def test_pictures_of_any_size_keep_their_size_and_are_not_shifted(
    size: tuple[int, int], make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a VAE that only rearranges pixels and a network that copies, the output equals the input pixel by pixel."""
    sampler = make_sampler()
    monkeypatch.setattr(sampler, "net", CopyingNetwork(sampler))
    factor = sampler.parts.factor
    monkeypatch.setattr(sampler.parts, "encode", torch.nn.PixelUnshuffle(factor))
    monkeypatch.setattr(sampler.parts, "decode", torch.nn.PixelShuffle(factor))
    monkeypatch.setattr(sampler.parts, "channels", 3 * factor**2)
    images = pictures(2, *size)
    got = sampler.sample(images, INSTRUCTIONS[:2], TASKS[:2], UNGUIDED, [3, 4]).images
    torch.testing.assert_close(got, images, rtol=0, atol=1e-4)


def test_padding_repeats_the_edge(make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = make_sampler()
    encoded: list[Tensor] = []
    encode = sampler.parts.encode
    monkeypatch.setattr(sampler.parts, "encode", lambda images: (encoded.append(images), encode(images))[1])
    images = pictures(1, 13, 18)
    assert sampler.grid_px == 2 * sampler.parts.factor
    sampler.sample(images, INSTRUCTIONS[:1], TASKS[:1], UNGUIDED.with_changes({"steps": 1}), [3])
    (padded,) = encoded
    assert padded.shape[-2:] == (16, 20)
    assert torch.equal(padded[..., :13, :18], images)
    assert torch.equal(padded[..., 13:, :18], images[..., -1:, :].expand(1, 3, 3, 18))
    assert torch.equal(padded[..., :13, 18:], images[..., -1:].expand(1, 3, 13, 2))


def test_bfloat16_is_close_to_float32(make_sampler: MakeSampler) -> None:
    images = pictures(2, 16, 16)
    full = make_sampler().sample(images, INSTRUCTIONS[:2], TASKS[:2], SETTINGS, [3, 4]).images
    half = make_sampler(dtype="bfloat16")
    assert half.net.unet.dtype == torch.float32
    got = half.sample(images, INSTRUCTIONS[:2], TASKS[:2], SETTINGS, [3, 4]).images
    assert got.dtype == torch.float32
    difference = (got - full).abs()
    assert 0 < difference.mean() < 0.05, f"mean {difference.mean():.3f}, largest {difference.max():.3f}"


def test_an_edit_that_cannot_be_made_is_an_error(make_sampler: MakeSampler) -> None:
    sampler, images = make_sampler(), pictures(1, 16, 16)
    with pytest.raises(UnknownTaskError, match=r"this editor's tasks \(local, remove.*got 'contour'"):
        sampler.sample(images, INSTRUCTIONS[:1], ["contour"], SETTINGS, [0])
    with pytest.raises(ValueError, match="1 images, 2 instructions, 1 tasks, 1 seeds"):
        sampler.sample(images, INSTRUCTIONS[:2], TASKS[:1], SETTINGS, [0])
    with pytest.raises(ValueError, match="0 images, 0 instructions, 0 tasks, 0 seeds"):
        sampler.sample(images[:0], [], [], SETTINGS)
    with pytest.raises(ValueError, match=r"in \[-1, 1\], got values"):
        sampler.sample(images * 300, INSTRUCTIONS[:1], TASKS[:1], SETTINGS, [0])


@pytest.mark.slow
@pytest.mark.parametrize("objective_name", ["base", "flow"])
def test_a_saved_editor_edits_as_before(objective_name: Any, make_sampler: MakeSampler, tmp_path: Path) -> None:
    """With the scheduler with which it was trained."""
    sampler, images = make_sampler(), pictures(1, 16, 16)
    scheduler = objective.configure_scheduler(sampler.parts.scheduler, objective_name)
    sampler.parts.scheduler = sampler.parts.pipeline.scheduler = scheduler
    sampler.add_task("contour", torch.arange(6) / 3)
    sampler.save(tmp_path / "copy", torch.float32)
    loaded = sampling.load(tmp_path / "copy")
    assert loaded.tasks == sampler.tasks
    assert loaded.fingerprint == sampler.fingerprint
    assert objective.prediction_type_of(loaded.parts.scheduler) == objective.prediction_type_of(scheduler)
    first, second = (editor.sample(images, INSTRUCTIONS[:1], ["contour"], SETTINGS, [3]).images for editor in (sampler, loaded))
    assert torch.equal(first, second)
