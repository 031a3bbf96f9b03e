from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.methods.prompt_to_prompt import (
    EVERYWHERE,
    Blend,
    Edit,
    PromptToPrompt,
    Words,
    blended,
    instruct_pix2pix,
    mapping,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

FIRST, SEEDS = ["a red star on grass", "two blue rings"], [3, 4]
FREE = Edit(0, "a blue star on grass", 0.0, 0.0, EVERYWHERE, 3.0)
BLEND = Blend(16, 0.3, 0.25)


def generate(base_model: TextToImageModel, *edits: Edit, guidance: float = 3.0, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return PromptToPrompt(base_model, 4, **how).generate(FIRST, SEEDS, [guidance] * 2, edits)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_without_control_it_paints_as_the_painter_does_bit_for_bit(base_model: TextToImageModel, guidance: float) -> None:
    other = replace(FREE, source=1, caption="two red CD rings", guidance=guidance)
    z = torch.cat(generate(base_model, replace(FREE, guidance=guidance), other, guidance=guidance))
    want = base_model.generate([*FIRST, FREE.caption, other.caption], [*SEEDS, *SEEDS], steps=4, guidance=guidance)
    assert torch.equal(base_model.decode(z), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("null_too", [False, True])
def test_its_own_caption_under_all_of_its_attention_is_the_source_bit_for_bit(
    base_model: TextToImageModel, dtype: torch.dtype, null_too: bool
) -> None:
    same = [replace(FREE, source=g, caption=caption, cross_fraction=1.0, self_fraction=1.0, null_too=null_too, blend=BLEND)
            for g, caption in enumerate(FIRST)]  # fmt: skip
    sources, edits = generate(base_model, *same, dtype=dtype)
    assert torch.equal(edits, sources)


def test_sources_do_not_see_their_edits(base_model: TextToImageModel) -> None:
    alone, _ = generate(base_model)
    beside, _ = generate(base_model, replace(FREE, cross_fraction=0.8, self_fraction=0.4, blend=BLEND), replace(FREE, source=1))
    assert_close(beside, alone, rtol=0, atol=1e-4)


def test_every_control_draws_the_edit_nearer_to_its_source_or_moves_it(base_model: TextToImageModel) -> None:
    free = generate(base_model, FREE)[1][0]
    kinds = {"cross_fraction": 1.0, "self_fraction": 1.0}
    for name, value in kinds.items():
        one = generate(base_model, replace(FREE, **{name: value}))[1][0]
        half = generate(base_model, replace(FREE, **{name: value / 2}))[1][0]
        assert (one - free).abs().max() > 1e-4, name
        assert (half - one).abs().max() > 1e-5, name
    small = generate(base_model, replace(FREE, self_fraction=1.0, self_tokens=1))[1][0]
    assert_close(small, free, rtol=0, atol=1e-5)


def test_reweighting_moves_the_edit_and_factor_one_does_not(base_model: TextToImageModel) -> None:
    plain = replace(FREE, cross_fraction=1.0)
    _, (some, one, more) = generate(
        base_model, plain, replace(plain, weights={"blue": 1.0}), replace(plain, weights={"blue": 4.0})
    )
    assert_close(some, one, rtol=0, atol=1e-5)
    assert (some - more).abs().max() > 1e-4


def test_neighbours_do_not_matter(base_model: TextToImageModel) -> None:
    wanted = [
        replace(FREE, cross_fraction=0.8, self_fraction=0.4, blend=BLEND),
        replace(FREE, source=1, caption="two blue and red rings", cross_fraction=0.5, self_tokens=16, guidance=5.0),
        instruct_pix2pix(0, "a green thing", 0.5, 2.0),
    ]
    together = generate(base_model, *wanted)[1]
    alone = torch.cat([generate(base_model, one)[1] for one in wanted])
    assert_close(together, alone, rtol=0, atol=1e-4)


def test_local_blend_keeps_the_source_outside_of_the_words(base_model: TextToImageModel) -> None:
    sources, (edit, nowhere) = generate(base_model, replace(FREE, blend=replace(BLEND, threshold=0.995, start=0.0)),
                                     replace(FREE, blend=replace(BLEND, threshold=1.0, start=0.0)))  # fmt: skip
    assert torch.equal(nowhere, sources[0])
    kept = (edit == sources[0]).all(0)  # [h, w]
    assert kept.any()
    assert not kept.all()


def test_a_large_place_in_a_map_is_its_maximum_and_what_touches_it() -> None:
    P = torch.zeros(16)
    P[5], P[15] = 1.0, 0.2
    got = blended(P, (8, 8), 0.3)[0, 0]
    want = torch.zeros(8, 8, dtype=torch.bool)
    want[:6, :6] = True
    assert torch.equal(got, want)


def test_chance_of_the_steps_is_shared(painted_by: Any) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    base_model = painted_by("sd15", EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1))
    sources, edits = generate(base_model, replace(FREE, caption=FIRST[0]))
    assert_close(edits[0], sources[0], rtol=0, atol=1e-3)


def test_captions_choose_between_replacing_and_refining(base_model: TextToImageModel) -> None:
    a, b, c = (Words.of(base_model.tokenizer, text) for text in ("a red star", "a BLUE star", "a big red star"))
    assert b.lengths == [1, 4, 1]
    swap, added = mapping(a, b, 12), mapping(a, c, 12)
    assert swap.A[2, 2:6].tolist() == [0.25] * 4
    assert not swap.own.any()
    assert added.own.nonzero().tolist() == [[2]]
    assert b.at([1], 12).nonzero().flatten().tolist() == [2, 3, 4, 5]


def test_wrong_wishes_are_named(base_model: TextToImageModel) -> None:
    with pytest.raises(ValueError, match=r"fractions of the steps must lie in \[0, 1\], got \[1.5\]"):
        generate(base_model, replace(FREE, cross_fraction=1.5))
    with pytest.raises(ValueError, match="to reweight, got 'green'"):
        generate(base_model, replace(FREE, cross_fraction=1.0, weights={"green": 2.0}))
    with pytest.raises(ValueError, match="a cross_fraction above 0"):
        generate(base_model, replace(FREE, weights={"blue": 2.0}))
    with pytest.raises(ValueError, match=r"at most 12 tokens.*got 14"):
        generate(base_model, replace(FREE, cross_fraction=1.0, caption="a " * 12))
    with pytest.raises(ValueError, match="got 2, 1 and 2"):
        PromptToPrompt(base_model, 4).generate(FIRST, [1], [3.0] * 2, [])
    with pytest.raises(ValueError, match="layers of 9 tokens"):
        generate(base_model, replace(FREE, blend=replace(BLEND, n_tokens=9)))
