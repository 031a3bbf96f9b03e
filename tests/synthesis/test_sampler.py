from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis import attention_features
from emuedit.synthesis.sampler import Sampler, Trajectory
from emuedit.synthesis.variant_plan import Variant

# Euler's schedulers pass a tensor to numpy, whose __array__ has the signature from before numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

CAPTIONS, SEEDS = ["a red star on grass", "two blue rings"], [3, 4]
FREE = Variant(0, "a blue cross at night", torch.ones(1, 16, 16), 0.0, 0.0, 0.0, 0.0, 3.0)


def square() -> torch.Tensor:
    """A mask with soft edges in the upper left quarter, 0 elsewhere."""
    M = torch.zeros(1, 16, 16)
    M[:, :8, :8] = 0.5
    M[:, 2:6, 2:6] = 1
    return M


def sample_sources(base_model: TextToImageModel, guidance_scale: float = 3.0, **options: Any) -> tuple[Sampler, Trajectory]:
    sampler = Sampler(base_model, 4, **options)
    return sampler, sampler.sources(CAPTIONS, SEEDS, guidance_scale)


shared_sources = cache(sample_sources)  # tests do not change a trajectory


@contextmanager
def count_rows(base_model: TextToImageModel) -> Iterator[list[int]]:
    """The rows of every forward pass of the U-Net."""
    rows: list[int] = []
    hook = base_model.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        hook.remove()


@pytest.mark.slow
def test_sources_are_the_pictures_of_the_base_model(base_model: TextToImageModel) -> None:
    _, trajectory = shared_sources(base_model)
    assert trajectory.z.shape[:2] == (5, 2)
    assert torch.equal(base_model.decode(trajectory.z[-1]), base_model.generate(CAPTIONS, SEEDS, steps=4, guidance_scale=3.0))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("self_fraction", "blend_to", "source_fraction"), [(0.0, 0.0, 0.0), (0.5, 0.0, 0.25), (1.0, 1.0, 0.0)])
def test_an_empty_mask_gives_the_source_bit_for_bit(
    base_model: TextToImageModel, dtype: torch.dtype, self_fraction: float, blend_to: float, source_fraction: float
) -> None:
    sampler, trajectory = shared_sources(base_model, dtype=dtype)
    fractions = {"self_fraction": self_fraction, "blend_to": blend_to, "source_fraction": source_fraction}
    empty = replace(FREE, M=torch.zeros(1, 16, 16), **fractions)
    variants = [replace(empty, source=g, caption=f"other {g} {n}") for g in (0, 1) for n in range(2)]
    assert torch.equal(sampler.variants(trajectory, variants), trajectory.z[-1][[0, 0, 1, 1]])


@pytest.mark.slow
def test_a_full_mask_gives_the_second_caption_bit_for_bit(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model)
    variants = [FREE, replace(FREE, source=1, caption="a green cross")]
    pictures = base_model.decode(sampler.variants(trajectory, variants))
    captions = [variant.caption for variant in variants]
    assert torch.equal(pictures, base_model.generate(captions, SEEDS, steps=4, guidance_scale=3.0))


@pytest.mark.slow
def test_each_row_has_its_own_guidance_scale(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model)
    scales = (1.0, 6.0)
    pictures = base_model.decode(sampler.variants(trajectory, [replace(FREE, guidance_scale=scale) for scale in scales]))
    for picture, scale in zip(pictures, scales, strict=True):
        expected = base_model.generate([FREE.caption], SEEDS[:1], steps=4, guidance_scale=scale)[0]
        assert_close(picture, expected, rtol=0, atol=1e-4)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3


@pytest.mark.slow
def test_the_full_guidance_interval_is_guidance_in_all_steps(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model, guidance_interval=(0.0, 1.0))
    expected = base_model.generate([*CAPTIONS, FREE.caption], [*SEEDS, SEEDS[0]], steps=4, guidance_scale=3.0)
    z = torch.cat([trajectory.z[-1], sampler.variants(trajectory, [FREE])])
    assert_close(base_model.decode(z), expected, rtol=0, atol=1e-4)
    default, default_trajectory = shared_sources(base_model)
    assert torch.equal(z, torch.cat([default_trajectory.z[-1], default.variants(default_trajectory, [FREE])]))


@pytest.mark.slow
def test_an_empty_guidance_interval_is_a_scale_of_one(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model, guidance_interval=(0.5, 0.5))
    unguided, unguided_trajectory = shared_sources(base_model, guidance_scale=1.0)
    assert torch.equal(trajectory.z, unguided_trajectory.z)
    expected = unguided.variants(unguided_trajectory, [replace(FREE, guidance_scale=1.0)])
    assert torch.equal(sampler.variants(trajectory, [FREE]), expected)


@pytest.mark.slow
def test_steps_outside_the_guidance_interval_compute_no_rows_without_text(base_model: TextToImageModel) -> None:
    with count_rows(base_model) as rows:
        sampler, trajectory = sample_sources(base_model, guidance_interval=(0.25, 0.75))
        sampler.variants(trajectory, [FREE, replace(FREE, M=square())])
    assert rows == [2, 4, 4, 2, 3, 6, 6, 3]  # sources, then a source and two variants
    _, unguided = sample_sources(base_model, guidance_scale=1.0)
    _, guided = sample_sources(base_model)
    assert torch.equal(trajectory.z[1], unguided.z[1])
    assert not torch.equal(trajectory.z[2], unguided.z[2])
    assert not torch.equal(trajectory.z[1], guided.z[1])


@pytest.mark.slow
def test_the_sampler_reports_the_rows_that_it_computes(base_model: TextToImageModel) -> None:
    reported: list[int] = []
    with count_rows(base_model) as rows:
        sampler, trajectory = sample_sources(base_model, guidance_interval=(0.0, 0.5), report=reported.append)
        sampler.variants(trajectory, [FREE])
    assert reported == rows


@pytest.mark.slow
def test_blending_to_the_end_changes_nothing_outside_the_mask(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model)
    (z,) = sampler.variants(trajectory, [replace(FREE, M=square(), blend_to=1.0)])
    source = trajectory.z[-1, 0]
    assert torch.equal(z[:, 4:], source[:, 4:])
    assert torch.equal(z[:, :, 4:], source[:, :, 4:])
    assert (z[:, 1:3, 1:3] - source[:, 1:3, 1:3]).abs().max() > 0.05
    blended_for_half = sampler.variants(trajectory, [replace(FREE, M=square(), blend_to=0.5)])[0]
    assert not torch.equal(blended_for_half[:, 4:], source[:, 4:])


def test_a_larger_mask_value_gives_a_larger_change(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model)
    variants = [replace(FREE, M=torch.full((1, 16, 16), value)) for value in (0.0, 0.3, 0.7, 1.0)]
    change = (sampler.variants(trajectory, variants) - trajectory.z[-1, 0]).abs().mean((1, 2, 3))
    assert change.diff().min() > 0


def test_the_fraction_of_injected_self_attention_matters(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model)
    z = sampler.variants(trajectory, [replace(FREE, self_fraction=fraction) for fraction in (0.0, 0.25, 1.0)])
    assert (z.diff(dim=0).abs().mean((1, 2, 3)) > 1e-4).all()


def test_injected_self_attention_changes_nothing_for_the_caption_of_the_source(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model)
    variants = [replace(FREE, source=g, caption=caption, self_fraction=1.0) for g, caption in enumerate(CAPTIONS)]
    assert torch.equal(sampler.variants(trajectory, variants), trajectory.z[-1])


@pytest.mark.slow
def test_the_first_steps_are_those_of_the_source(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model)
    half, full = sampler.variants(trajectory, [replace(FREE, source_fraction=0.5), replace(FREE, source_fraction=1.0)])
    free = sampler.variants(trajectory, [FREE])[0]
    source = trajectory.z[-1, 0]
    assert torch.equal(full, source)
    assert 0 < (half - source).abs().mean() < (free - source).abs().mean()


@pytest.mark.slow
def test_variants_do_not_depend_on_the_others_of_their_batch(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model)
    variants = [
        replace(FREE, M=square(), blend_to=1.0),
        replace(FREE, source=1, self_fraction=0.5),
        replace(FREE, caption="a third thing", M=square(), self_fraction=1.0, source_fraction=0.25),
    ]
    together = sampler.variants(trajectory, variants)
    alone = torch.cat([sampler.variants(trajectory, [variant]) for variant in variants])
    assert_close(together, alone, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_only_the_rows_that_are_needed_are_computed(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model)
    with count_rows(base_model) as rows:
        sampler.variants(trajectory, [replace(FREE, self_fraction=0.5), replace(FREE, source_fraction=0.75)])
        sampler.variants(trajectory, [replace(FREE, M=square()), replace(FREE, M=square(), caption="b")])
    assert rows == [4, 4, 2, 4, 6, 6, 6, 6]  # twice the rows for guidance; one source for two variants


@pytest.mark.slow
def test_variants_use_the_noise_of_their_source(make_base_model: Callable[..., TextToImageModel]) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    base_model = make_base_model("toy", EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear"))
    sampler, trajectory = sample_sources(base_model)
    assert torch.equal(base_model.decode(trajectory.z[-1]), base_model.generate(CAPTIONS, SEEDS, steps=4, guidance_scale=3.0))
    empty = replace(FREE, M=torch.zeros(1, 16, 16))
    variants = [replace(empty, source=g, source_fraction=fraction) for g, fraction in ((0, 0.0), (0, 0.5), (1, 0.25))]
    assert torch.equal(sampler.variants(trajectory, variants), trajectory.z[-1][[0, 0, 1]])


def test_a_scheduler_with_a_history_is_replaced_by_ddim_on_its_noise_levels(
    make_base_model: Callable[..., TextToImageModel],
) -> None:
    from diffusers import PNDMScheduler

    pndm = PNDMScheduler(beta_schedule="scaled_linear", beta_end=0.012, skip_prk_steps=True)
    base_model = make_base_model("sd15", pndm)
    scheduler = Sampler(base_model, 4).denoiser().scheduler
    assert type(scheduler).__name__ == "DDIMScheduler"
    assert_close(scheduler.alphas_cumprod, base_model.scheduler.alphas_cumprod)


def test_attention_that_is_too_large_is_not_kept_beyond_its_bound(
    base_model: TextToImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One forward of SDXL at 1024 px has 1.7 GB of it per source."""
    sampler, n_bytes, most = Sampler(base_model, 3), [0], [0]
    append = attention_features.FeatureRecorder._append

    def record(recorder: Any, tensors: list[torch.Tensor], tensor: torch.Tensor) -> None:
        append(recorder, tensors, tensor)
        n_bytes[0] = sum(x.nbytes for part in (recorder._queries, recorder._keys, recorder._outputs) for x in part)
        most[0] = max(most[0], n_bytes[0])

    monkeypatch.setattr(attention_features.FeatureRecorder, "_append", record)
    full = sampler.sources(["a ring"], [1], 3.0, 2**30)
    size = full.features[0].n_bytes
    assert len(full.features) == len(full.e_null) == 3
    assert most[0] == size
    most[0] = 0
    bounded = sampler.sources(["a ring"], [1], 3.0, 3 * size - 3)
    assert not bounded.features
    assert not bounded.e_null
    assert 0 < most[0] < size
    assert torch.equal(bounded.z, full.z)


@pytest.mark.slow
def test_batches_of_sources_join(base_model: TextToImageModel) -> None:
    sampler, together = shared_sources(base_model)
    parts = [sampler.sources([caption], [seed], 3.0) for caption, seed in zip(CAPTIONS, SEEDS, strict=True)]
    assert Trajectory.cat(parts[0]) is parts[0], "one batch is not copied"
    joined = Trajectory.cat(*parts)
    assert len(joined) == 2
    assert_close(joined.z, together.z, rtol=0, atol=1e-4)
    empty = replace(FREE, source=1, M=torch.zeros(1, 16, 16))
    assert_close(sampler.variants(joined, [empty]), joined.z[-1, 1:], rtol=0, atol=1e-4)


def test_wrong_arguments_are_refused(base_model: TextToImageModel) -> None:
    sampler, trajectory = shared_sources(base_model)
    with pytest.raises(ValueError, match="at least one variant"):
        sampler.variants(trajectory, [])
    with pytest.raises(ValueError, match="blend_from before blend_to"):
        sampler.variants(trajectory, [replace(FREE, blend_from=0.5, blend_to=0.2)])
    with pytest.raises(ValueError, match="a trajectory of 3 steps, got one of 4"):
        Sampler(base_model, 3).variants(trajectory, [FREE])
    with pytest.raises(ValueError, match="got 2 captions and 1 seeds"):
        sampler.sources(CAPTIONS, [1], 3.0)
