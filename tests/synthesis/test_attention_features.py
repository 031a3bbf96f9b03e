"""Variants whose sources' attention was recorded equal those that run beside their sources."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from emuedit.models.attention_processor import install_processor
from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.attention_features import AttentionFeatures, FeatureRecorder
from emuedit.synthesis.sampler import Sampler, Trajectory
from emuedit.synthesis.variant_plan import Variant
from tests.synthesis.test_sampler import CAPTIONS, FREE, SEEDS, count_rows, square

ENOUGH = 2**30
ROUNDING = 1e-4  # of latents up to 100 large, from other rows in the batch; as in test_sampler
INJECTING = replace(FREE, self_fraction=0.5, source_fraction=0.25)
MASKED = replace(FREE, source=1, M=square(), self_fraction=0.5, caption="a green cross")
BLENDED = replace(MASKED, source=0, blend_to=1.0)


def sample(base_model: TextToImageModel, max_feature_bytes: int, guidance_scale: float = 3.0) -> tuple[Sampler, Trajectory]:
    sampler = Sampler(base_model, 4)
    return sampler, sampler.sources(CAPTIONS, SEEDS, guidance_scale, max_feature_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("variants", [[FREE], [INJECTING], [MASKED], [INJECTING, BLENDED, MASKED, FREE]], ids=len)
def test_recorded_and_computed_sources_give_the_same_variants(base_model: TextToImageModel, variants: list[Variant]) -> None:
    sampler, trajectory = sample(base_model, ENOUGH)
    assert torch.equal(trajectory.z, sample(base_model, 0)[1].z)
    expected = sampler.variants(replace(trajectory, features=()), variants)
    with count_rows(base_model) as rows:
        assert_close(sampler.variants(trajectory, variants), expected, rtol=0, atol=ROUNDING)
    n_first = len(variants) if len(variants) == 1 else sum(variant.source_fraction == 0 for variant in variants)
    assert rows[0] == n_first  # in the step in which variants leave their sources, the null text's predictions are the sources'
    assert rows[-1] == 2 * len(variants)
    if variants != [FREE]:
        alone = sampler.variants(trajectory, [replace(FREE, caption=variant.caption) for variant in variants])
        assert (alone - expected).abs().max() > 1e-3


@pytest.mark.slow
def test_an_empty_mask_gives_the_source_bit_for_bit(base_model: TextToImageModel) -> None:
    sampler, trajectory = sample(base_model, ENOUGH)
    empty = replace(FREE, M=torch.zeros(1, 16, 16), self_fraction=1.0, blend_to=1.0)
    variants = [replace(empty, source=g, caption=f"other {g} {n}") for g in (0, 1) for n in range(2)]
    assert torch.equal(sampler.variants(trajectory, variants), trajectory.z[-1][[0, 0, 1, 1]])


@pytest.mark.slow
def test_batches_of_sources_keep_their_features_in_order(base_model: TextToImageModel) -> None:
    sampler, together = sample(base_model, ENOUGH)
    parts = [sampler.sources([CAPTIONS[g]], [SEEDS[g]], 3.0, ENOUGH) for g in (0, 1)]
    joined = Trajectory.cat(*parts)
    assert [step.n_bytes for step in joined.features] == [step.n_bytes for step in together.features]
    variants = [MASKED, BLENDED]
    assert_close(sampler.variants(joined, variants), sampler.variants(together, variants), rtol=0, atol=ROUNDING)
    unrecorded = sampler.sources([CAPTIONS[1]], [SEEDS[1]], 3.0)
    assert Trajectory.cat(parts[0], unrecorded).features == ()


@pytest.mark.slow
def test_nothing_is_recorded_that_needs_more_memory_than_allowed(base_model: TextToImageModel) -> None:
    _, trajectory = sample(base_model, ENOUGH)
    n_bytes = sum(step.n_bytes for step in trajectory.features)
    assert len(trajectory.features) == 4
    assert sample(base_model, n_bytes)[1].features
    assert sample(base_model, n_bytes - 1)[1].features == ()
    assert type(next(iter(base_model.unet.attn_processors.values()))).__name__ == "AttnProcessor2_0"


@pytest.mark.slow
def test_guided_variants_of_unguided_sources_run_beside_them(base_model: TextToImageModel) -> None:
    """The recorded attention has no null term then."""
    sampler, trajectory = sample(base_model, ENOUGH, guidance_scale=1.0)
    assert {step.n_terms for step in trajectory.features} == {1}
    expected = sampler.variants(replace(trajectory, features=()), [MASKED])
    assert torch.equal(sampler.variants(trajectory, [MASKED]), expected)


@pytest.mark.slow
def test_unguided_variants_take_the_text_term_of_guided_sources(base_model: TextToImageModel) -> None:
    sampler, trajectory = sample(base_model, ENOUGH)
    unguided = replace(MASKED, guidance_scale=1.0)
    with count_rows(base_model) as rows:
        z = sampler.variants(trajectory, [unguided])
    assert set(rows) == {1}
    expected = sampler.variants(replace(trajectory, features=()), [unguided])
    assert_close(z, expected, rtol=0, atol=ROUNDING)


def test_features_have_a_layer_for_every_attention(base_model: TextToImageModel) -> None:
    n_layers = len(base_model.unet.attn_processors)
    with install_processor(base_model.unet, FeatureRecorder()) as recorder:
        text = base_model.encode_text(CAPTIONS)
        z_t = base_model.initial_noise([torch.Generator().manual_seed(seed) for seed in SEEDS])
        with torch.no_grad():
            base_model.predict(z_t, torch.tensor(500), text)
        features = recorder.take(2)
    assert isinstance(features, AttentionFeatures)
    assert (len(features.outputs), len(features.queries), len(features.keys)) == (n_layers, n_layers // 2, n_layers // 2)
    assert all(tensor.shape[:2] == (1, 2) for tensor in (*features.queries, *features.outputs))
    assert recorder.take(2).outputs == ()
