from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler, UniPCMultistepScheduler
from torch.testing import assert_close

from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.methods.caption_alignment import CaptionTokens, map_tokens
from emuedit.synthesis.methods.local_blend import LocalBlend, attention_region
from emuedit.synthesis.methods.prompt_to_prompt import (
    ALL_LAYERS,
    PromptToPrompt,
    PromptToPromptEdit,
    instruct_pix2pix,
)
from emuedit.synthesis.sampler import Sampler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

CAPTIONS, SEEDS = ["a red star on grass", "two blue rings"], [3, 4]
PLAIN_EDIT = PromptToPromptEdit(0, "a blue star on grass", 0.0, 0.0, ALL_LAYERS, 3.0)
BLEND = LocalBlend(n_tokens=16, threshold=0.3, start=0.25)


def generate(
    base_model: TextToImageModel, *edits: PromptToPromptEdit, guidance_scale: float = 3.0, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return PromptToPrompt(Sampler(base_model, 4, **options)).generate(CAPTIONS, SEEDS, [guidance_scale] * 2, edits)


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_without_control_it_equals_plain_generation_bit_for_bit(base_model: TextToImageModel, guidance_scale: float) -> None:
    edit = replace(PLAIN_EDIT, guidance_scale=guidance_scale)
    other_edit = replace(edit, source=1, caption="two red CD rings")
    z = torch.cat(generate(base_model, edit, other_edit, guidance_scale=guidance_scale))
    captions = [*CAPTIONS, edit.caption, other_edit.caption]
    expected = base_model.generate(captions, [*SEEDS, *SEEDS], steps=4, guidance_scale=guidance_scale)
    assert torch.equal(base_model.decode(z), expected)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [PNDMScheduler(skip_prk_steps=True, steps_offset=1), UniPCMultistepScheduler(), None])
def test_sources_are_those_of_the_sampler_also_where_the_scheduler_keeps_a_history(
    make_base_model: Callable[..., TextToImageModel], scheduler: Any
) -> None:
    base_model = make_base_model("sd15", scheduler)
    sources, edits = generate(base_model, replace(PLAIN_EDIT, caption=CAPTIONS[0]))
    expected = Sampler(base_model, 4).sources(CAPTIONS, SEEDS, 3.0).z[-1]
    assert_close(sources, expected)
    assert_close(edits[0], expected[0])


@pytest.mark.slow
def test_the_full_guidance_interval_is_guidance_in_all_steps(base_model: TextToImageModel) -> None:
    edit = replace(PLAIN_EDIT, self_fraction=0.5, cross_fraction=0.5)
    in_interval = torch.cat(generate(base_model, edit, guidance_interval=(0.0, 1.0)))
    assert torch.equal(in_interval, torch.cat(generate(base_model, edit)))


@pytest.mark.slow
def test_an_empty_guidance_interval_is_a_scale_of_one(base_model: TextToImageModel) -> None:
    edit = replace(PLAIN_EDIT, self_fraction=0.5, cross_fraction=0.5, blend=BLEND)
    in_interval = torch.cat(generate(base_model, edit, guidance_interval=(0.5, 0.5)))
    unguided = generate(base_model, replace(edit, guidance_scale=1.0), guidance_scale=1.0)
    assert torch.equal(in_interval, torch.cat(unguided))


@pytest.mark.slow
def test_steps_outside_the_guidance_interval_compute_no_rows_without_text(base_model: TextToImageModel) -> None:
    edits = [replace(PLAIN_EDIT, cross_fraction=0.8, self_fraction=0.4, blend=BLEND), replace(PLAIN_EDIT, source=1)]
    rows: list[int] = []
    reported: list[int] = []
    hook = base_model.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        in_interval = generate(base_model, *edits, guidance_interval=(0.25, 0.75), report=reported.append)
        guided = generate(base_model, *edits)
    finally:
        hook.remove()
    assert rows == [4, 8, 8, 4, 8, 8, 8, 8]
    assert reported == rows[:4]
    for z, z_guided in zip(in_interval, guided, strict=True):
        assert (z - z_guided).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("null_too", [False, True])
def test_an_unchanged_caption_under_full_control_gives_the_source_bit_for_bit(
    base_model: TextToImageModel, dtype: torch.dtype, null_too: bool
) -> None:
    controlled = replace(PLAIN_EDIT, cross_fraction=1.0, self_fraction=1.0, null_too=null_too, blend=BLEND)
    unchanged = [replace(controlled, source=g, caption=caption) for g, caption in enumerate(CAPTIONS)]
    sources, edits = generate(base_model, *unchanged, dtype=dtype)
    assert torch.equal(edits, sources)


@pytest.mark.slow
def test_sources_do_not_depend_on_their_edits(base_model: TextToImageModel) -> None:
    alone, _ = generate(base_model)
    edits = [replace(PLAIN_EDIT, cross_fraction=0.8, self_fraction=0.4, blend=BLEND), replace(PLAIN_EDIT, source=1)]
    with_edits, _ = generate(base_model, *edits)
    assert_close(with_edits, alone, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_every_control_changes_the_edit(base_model: TextToImageModel) -> None:
    plain = generate(base_model, PLAIN_EDIT)[1][0]
    for name in ("cross_fraction", "self_fraction"):
        all_steps = generate(base_model, replace(PLAIN_EDIT, **{name: 1.0}))[1][0]
        half_of_steps = generate(base_model, replace(PLAIN_EDIT, **{name: 0.5}))[1][0]
        assert (all_steps - plain).abs().max() > 1e-4, name
        assert (half_of_steps - all_steps).abs().max() > 1e-5, name
    no_layer = generate(base_model, replace(PLAIN_EDIT, self_fraction=1.0, self_tokens=0))[1][0]
    assert_close(no_layer, plain, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"want self_tokens of at least \d+, .* got 1; set one of \["):
        generate(base_model, replace(PLAIN_EDIT, self_fraction=1.0, self_tokens=1))


@pytest.mark.slow
def test_edits_do_not_depend_on_other_edits_of_the_batch(base_model: TextToImageModel) -> None:
    edits = [
        replace(PLAIN_EDIT, cross_fraction=0.8, self_fraction=0.4, blend=BLEND),
        replace(PLAIN_EDIT, source=1, caption="two blue and red rings", cross_fraction=0.5, self_tokens=16, guidance_scale=5.0),
        instruct_pix2pix(0, "a green thing", 0.5, 2.0),
    ]
    together = generate(base_model, *edits)[1]
    alone = torch.cat([generate(base_model, edit)[1] for edit in edits])
    assert_close(together, alone, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_local_blend_keeps_the_source_away_from_the_changed_words(base_model: TextToImageModel) -> None:
    thresholds = (0.995, 1.0)
    blends = [BLEND.model_copy(update={"threshold": threshold, "start": 0.0}) for threshold in thresholds]
    edits = [replace(PLAIN_EDIT, blend=blend) for blend in blends]
    sources, (local_edit, empty_edit) = generate(base_model, *edits)
    assert torch.equal(empty_edit, sources[0])
    preserved = (local_edit == sources[0]).all(0)  # [h, w]
    assert preserved.any()
    assert not preserved.all()


def test_the_attention_region_is_the_maximum_and_its_neighbours() -> None:
    P = torch.zeros(16)
    P[5], P[15] = 1.0, 0.2
    region = attention_region(P, (8, 8), 0.3)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:6, :6] = True
    assert torch.equal(region, expected)


def test_the_noise_of_the_steps_is_that_of_the_source(make_base_model: Callable[..., TextToImageModel]) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    base_model = make_base_model("sd15", EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1))
    sources, edits = generate(base_model, replace(PLAIN_EDIT, caption=CAPTIONS[0]))
    assert_close(edits[0], sources[0], rtol=0, atol=1e-3)


def test_words_swapped_in_place_are_replaced_and_added_words_refined(base_model: TextToImageModel) -> None:
    captions = ("a red star", "a BLUE star", "a big red star")
    source, swapped, longer = (CaptionTokens.from_caption(base_model.tokenizer, caption) for caption in captions)
    assert swapped.lengths == [1, 4, 1]
    replacement, refinement = map_tokens(source, swapped, 12), map_tokens(source, longer, 12)
    assert replacement.A[2, 2:6].tolist() == [0.25] * 4
    assert not replacement.target_weight.any()
    assert refinement.target_weight.nonzero().tolist() == [[2]]
    assert swapped.token_mask([1], 12).nonzero().flatten().tolist() == [2, 3, 4, 5]


def test_unchanged_words_keep_their_maps_if_a_word_is_removed_and_another_added_elsewhere(base_model: TextToImageModel) -> None:
    captions = ("a brown dog on grass", "a dog on green grass")
    source, target = (CaptionTokens.from_caption(base_model.tokenizer, caption) for caption in captions)
    mapping = map_tokens(source, target, 12)
    for word in ("a", "dog", "on", "grass"):
        source_of = mapping.A[:, 1 + target.words.index(word)]  # after the start token
        assert source_of.nonzero().flatten().tolist() == [1 + source.words.index(word)], word
        assert source_of.sum() == 1, word
    assert mapping.target_weight.nonzero().flatten().tolist() == [1 + target.words.index("green")]


def test_wrong_arguments_are_refused(base_model: TextToImageModel) -> None:
    with pytest.raises(ValueError, match=r"fractions of the steps must be in \[0, 1\], got \[1.5\]"):
        replace(PLAIN_EDIT, cross_fraction=1.5)
    with pytest.raises(ValueError, match=r"at most 12 tokens.*got 14"):
        generate(base_model, replace(PLAIN_EDIT, cross_fraction=1.0, caption="a " * 12))
    with pytest.raises(ValueError, match="got 2, 1 and 2"):
        PromptToPrompt(Sampler(base_model, 4)).generate(CAPTIONS, [1], [3.0] * 2, [])
    with pytest.raises(ValueError, match="layers of 9 tokens"):
        generate(base_model, replace(PLAIN_EDIT, blend=BLEND.model_copy(update={"n_tokens": 9})))
