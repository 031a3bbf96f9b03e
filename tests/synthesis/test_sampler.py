from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.sampler import Sampler, Trajectory, Variant

# Euler's schedulers give numpy a tensor, whose __array__ is older than numpy 2 likes
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

FIRST, SEEDS = ["a red star on grass", "two blue rings"], [3, 4]
FREE = Variant(0, "a blue heart at night", torch.ones(1, 16, 16), 0.0, 0.0, 0.0, 0.0, 3.0)


def square() -> torch.Tensor:
    """Soft edges in the upper left quarter; nothing elsewhere."""
    M = torch.zeros(1, 16, 16)
    M[:, :8, :8] = 0.5
    M[:, 2:6, 2:6] = 1
    return M


def started(base_model: TextToImageModel, steps: int = 4, **how: Any) -> tuple[Sampler, Trajectory]:
    sampler = Sampler(base_model, steps, **how)
    return sampler, sampler.sources(FIRST, SEEDS, 3.0)


def test_sources_are_what_the_painter_paints(base_model: TextToImageModel) -> None:
    _, trajectory = started(base_model)
    assert trajectory.z.shape[:2] == (5, 2)
    assert torch.equal(base_model.decode(trajectory.z[-1]), base_model.generate(FIRST, SEEDS, steps=4, guidance_scale=3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("self_fraction", "blend_to", "source_fraction"), [(0.0, 0.0, 0.0), (0.5, 0.0, 0.25), (1.0, 1.0, 0.0)])
def test_an_empty_mask_gives_the_source_bit_for_bit(
    base_model: TextToImageModel, dtype: torch.dtype, self_fraction: float, blend_to: float, source_fraction: float
) -> None:
    sampler, trajectory = started(base_model, dtype=dtype)
    nothing = torch.zeros(1, 16, 16)
    how = {"self_fraction": self_fraction, "blend_to": blend_to, "source_fraction": source_fraction}
    wanted = [replace(FREE, M=nothing, source=g, caption=f"other {g} {n}", **how) for g in (0, 1) for n in range(2)]
    got = sampler.variants(trajectory, wanted)
    assert torch.equal(got, trajectory.z[-1][[0, 0, 1, 1]])


def test_a_full_mask_paints_the_second_caption_bit_for_bit(base_model: TextToImageModel) -> None:
    sampler, trajectory = started(base_model)
    wanted = [FREE, replace(FREE, source=1, caption="a green cross")]
    got = base_model.decode(sampler.variants(trajectory, wanted))
    assert torch.equal(got, base_model.generate([one.caption for one in wanted], SEEDS, steps=4, guidance_scale=3.0))


def test_each_row_has_its_own_guidance(base_model: TextToImageModel) -> None:
    sampler, trajectory = started(base_model)
    got = base_model.decode(sampler.variants(trajectory, [replace(FREE, guidance_scale=1.0), replace(FREE, guidance_scale=6.0)]))
    for image, guidance in zip(got, (1.0, 6.0), strict=True):
        want = base_model.generate([FREE.caption], SEEDS[:1], steps=4, guidance_scale=guidance)[0]
        assert_close(image, want, rtol=0, atol=1e-4)
    assert (got[0] - got[1]).abs().max() > 1e-3


def test_outside_of_the_mask_nothing_moves_with_blending_to_the_end(base_model: TextToImageModel) -> None:
    sampler, trajectory = started(base_model)
    (z,) = sampler.variants(trajectory, [replace(FREE, M=square(), blend_to=1.0)])
    source = trajectory.z[-1, 0]
    assert torch.equal(z[:, 4:], source[:, 4:])
    assert torch.equal(z[:, :, 4:], source[:, :, 4:])
    assert (z[:, 1:3, 1:3] - source[:, 1:3, 1:3]).abs().max() > 0.05
    half = sampler.variants(trajectory, [replace(FREE, M=square(), blend_to=0.5)])[0]
    assert not torch.equal(half[:, 4:], source[:, 4:])


def test_soft_masks_lie_between(base_model: TextToImageModel) -> None:
    sampler, trajectory = started(base_model)
    levels = [replace(FREE, M=torch.full((1, 16, 16), level)) for level in (0.0, 0.3, 0.7, 1.0)]
    away = (sampler.variants(trajectory, levels) - trajectory.z[-1, 0]).abs().mean((1, 2, 3))
    assert away.diff().min() > 0


def test_the_sources_attention_matters_for_as_long_as_it_is_told(base_model: TextToImageModel) -> None:
    sampler, trajectory = started(base_model)
    some = sampler.variants(trajectory, [replace(FREE, self_fraction=part) for part in (0.0, 0.25, 1.0)])
    assert (some.diff(dim=0).abs().mean((1, 2, 3)) > 1e-4).all()


def test_the_sources_attention_changes_nothing_for_the_sources_own_caption(base_model: TextToImageModel) -> None:
    sampler, trajectory = started(base_model)
    same = [replace(FREE, source=g, caption=caption, self_fraction=1.0) for g, caption in enumerate(FIRST)]
    assert torch.equal(sampler.variants(trajectory, same), trajectory.z[-1])


def test_the_first_part_is_the_sources(base_model: TextToImageModel) -> None:
    sampler, trajectory = started(base_model)
    late, never = sampler.variants(trajectory, [replace(FREE, source_fraction=0.5), replace(FREE, source_fraction=1.0)])
    free = sampler.variants(trajectory, [FREE])[0]
    source = trajectory.z[-1, 0]
    assert torch.equal(never, source)
    assert 0 < (late - source).abs().mean() < (free - source).abs().mean()


def test_candidates_do_not_depend_on_their_neighbours(base_model: TextToImageModel) -> None:
    sampler, trajectory = started(base_model)
    wanted = [
        replace(FREE, M=square(), blend_to=1.0),
        replace(FREE, source=1, self_fraction=0.5),
        replace(FREE, caption="a third thing", M=square(), self_fraction=1.0, source_fraction=0.25),
    ]
    together = sampler.variants(trajectory, wanted)
    alone = torch.cat([sampler.variants(trajectory, [one]) for one in wanted])
    assert_close(together, alone, rtol=0, atol=1e-4)


def test_only_what_is_needed_is_computed(base_model: TextToImageModel) -> None:
    sampler, trajectory = started(base_model)
    rows: list[int] = []
    hook = base_model.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        sampler.variants(trajectory, [replace(FREE, self_fraction=0.5), replace(FREE, source_fraction=0.75)])
        sampler.variants(trajectory, [replace(FREE, M=square()), replace(FREE, M=square(), caption="b")])
    finally:
        hook.remove()
    assert rows == [4, 4, 2, 4, 6, 6, 6, 6]  # both halves of guidance; one source for two candidates


def test_candidates_see_their_sources_noise(painted_by: Any) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    base_model = painted_by("toy", EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear"))
    sampler, trajectory = started(base_model)
    assert torch.equal(base_model.decode(trajectory.z[-1]), base_model.generate(FIRST, SEEDS, steps=4, guidance_scale=3.0))
    nothing = torch.zeros(1, 16, 16)
    wanted = [replace(FREE, M=nothing, source=g, source_fraction=s) for g, s in ((0, 0.0), (0, 0.5), (1, 0.25))]
    assert torch.equal(sampler.variants(trajectory, wanted), trajectory.z[-1][[0, 0, 1]])


def test_a_scheduler_with_a_history_gives_way_to_ddim_on_its_noise_levels(painted_by: Any) -> None:
    from diffusers import PNDMScheduler

    base_model = painted_by("sd15", PNDMScheduler(beta_schedule="scaled_linear", beta_end=0.012, skip_prk_steps=True))
    scheduler = Sampler(base_model, 4).scheduler
    assert type(scheduler).__name__ == "DDIMScheduler"
    torch.testing.assert_close(scheduler.alphas_cumprod, base_model.scheduler.alphas_cumprod)


def test_batches_of_sources_join(base_model: TextToImageModel) -> None:
    sampler, both = started(base_model)
    parts = [sampler.sources([caption], [seed], 3.0) for caption, seed in zip(FIRST, SEEDS, strict=True)]
    joined = Trajectory.cat(*parts)
    assert len(joined) == 2
    assert_close(joined.z, both.z, rtol=0, atol=1e-4)
    wanted = [replace(FREE, source=1, M=torch.zeros(1, 16, 16))]
    assert_close(sampler.variants(joined, wanted), joined.z[-1, 1:], rtol=0, atol=1e-4)


def test_wrong_wishes_are_named(base_model: TextToImageModel) -> None:
    sampler, trajectory = started(base_model)
    with pytest.raises(ValueError, match="at least one variant"):
        sampler.variants(trajectory, [])
    with pytest.raises(ValueError, match="blend_from before blend_to"):
        sampler.variants(trajectory, [replace(FREE, blend_from=0.5, blend_to=0.2)])
    with pytest.raises(ValueError, match="a trajectory of 3 steps, got one of 4"):
        Sampler(base_model, 3).variants(trajectory, [FREE])
    with pytest.raises(ValueError, match="got 2 captions and 1 seeds"):
        sampler.sources(FIRST, [1], 3.0)
