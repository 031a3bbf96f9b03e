from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from emuedit.models.attention_processor import install_processor
from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.methods.attention_maps import (
    AttentionMapControl,
    MapEdits,
)

LAYERS: dict[str, dict[str, Any]] = {
    "self": {},
    "cross": {"cross_attention_dim": 6},
    "cross with norm": {"cross_attention_dim": 6, "cross_attention_norm": "layer_norm"},
    "norm of queries and keys": {"qk_norm": "layer_norm"},
    "upcast": {"upcast_attention": True, "cross_attention_dim": 6},
}


def attention_layer(**options: Any) -> Any:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    return Attention(query_dim=8, heads=2, dim_head=4, **options).eval()


def random_states(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def set_control(control: AttentionMapControl, n_rows: int, **settings: Any) -> AttentionMapControl:
    """Set a control for n rows that edit, record and inject nothing, except for the given settings."""
    source_row = settings.pop("source_row", torch.arange(n_rows))
    max_self_tokens = settings.pop("max_self_tokens", torch.zeros(n_rows, dtype=torch.int64))
    control.set(source_row, max_self_tokens, **({"first_text_row": 0} | settings))
    return control


def split_heads(states: torch.Tensor) -> torch.Tensor:
    return states.unflatten(-1, (2, 4)).transpose(-2, -3)


def attention_map(attn: Any, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    return (split_heads(attn.to_q(x)) @ split_heads(attn.to_k(context)).mT / 2).softmax(-1)


def attend(attn: Any, P: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    return attn.to_out[0]((P @ split_heads(attn.to_v(context))).transpose(-2, -3).flatten(-2))


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("masked", [False, True])
def test_without_edits_the_result_equals_that_of_diffusers(options: dict[str, Any], masked: bool) -> None:
    attn, x = attention_layer(**options), random_states(2, 6, 8)
    context = random_states(2, 5, 6) if "cross_attention_dim" in options else None
    n = 6 if context is None else 5
    mask = torch.where(torch.arange(n) == 1, -10000.0, 0.0).expand(2, 1, n) if masked else None
    expected = attn(x, context, attention_mask=mask)
    attn.set_processor(set_control(AttentionMapControl(), 2))
    assert torch.equal(attn(x, context, attention_mask=mask), expected)


@pytest.mark.parametrize("options", [options for options in LAYERS.values() if "cross_attention_dim" in options])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_explicit_maps_agrees_with_diffusers(options: dict[str, Any], masked: bool) -> None:
    attn, x, context = attention_layer(**options), random_states(3, 6, 8), random_states(3, 5, 6)
    mask = torch.where(torch.arange(5) == 1, -10000.0, 0.0).expand(3, 1, 5) if masked else None
    expected = attn(x, context, attention_mask=mask)
    control = set_control(AttentionMapControl(), 3, first_text_row=1, recorded_sizes=frozenset({6}))
    attn.set_processor(control)
    assert_close(attn(x, context, attention_mask=mask), expected, rtol=1e-5, atol=1e-6)
    assert control.mean_map(6).shape == (2, 6, 5)
    assert_close(control.mean_map(6).sum(-1), torch.ones(2, 6))


def test_edited_maps_follow_the_formula_of_the_paper() -> None:
    attn, x, context = attention_layer(cross_attention_dim=6), random_states(4, 6, 8), random_states(4, 5, 6)
    unedited = attn(x, context)  # two rows without text, then two rows with text
    A, target_weight = random_states(1, 5, 5).abs(), random_states(1, 5).abs()
    edits = MapEdits(torch.tensor([3]), torch.tensor([2]), A, target_weight)
    control = set_control(AttentionMapControl(), 4, first_text_row=2, recorded_sizes=frozenset({6}), map_edits=edits)
    attn.set_processor(control)
    edited = attn(x, context)
    assert_close(edited[:3], unedited[:3], rtol=1e-5, atol=1e-6)
    P_s, P_t = (attention_map(attn, x[row], context[row]) for row in (2, 3))
    P = P_s @ A[0] + P_t * target_weight[0]
    assert_close(edited[3], attend(attn, P, context[3]), rtol=1e-4, atol=1e-6)
    assert_close(control.mean_map(6), torch.stack([P_s, P]).mean(1), rtol=1e-5, atol=1e-6)  # recorded after the edit


def test_explicit_maps_in_float16_do_not_overflow() -> None:
    """The product of these queries and keys is above the largest number of float16, their scores are not."""
    query, value = torch.full((1, 1, 2, 64), 40.0, dtype=torch.float16), torch.ones(1, 1, 3, 64, dtype=torch.float16)
    control = set_control(AttentionMapControl(), 1, recorded_sizes=frozenset({2}))
    out = control.attend(False, query, 40 * value, value, None)
    assert torch.equal(out, torch.ones_like(query))


def test_recorded_maps_are_averaged_over_layers_and_steps() -> None:
    attn, x, context = attention_layer(cross_attention_dim=6), random_states(2, 6, 8), random_states(2, 5, 6)
    control = set_control(AttentionMapControl(), 2, recorded_sizes=frozenset({6}))
    attn.set_processor(control)
    maps = []
    for factor in (1.0, -2.0):
        attn(factor * x, context)
        maps.append(attention_map(attn, factor * x, context).mean(1))
    assert_close(control.mean_map(6), torch.stack(maps).mean(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"layers of 9 tokens, got those of \[6\]"):
        control.mean_map(9)


def test_self_attention_is_injected_in_small_layers_only() -> None:
    attn, x = attention_layer(), random_states(3, 6, 8)
    expected = attn(x)
    settings = {"source_row": torch.tensor([0, 0, 0]), "max_self_tokens": torch.tensor([0, 6, 5])}
    attn.set_processor(set_control(AttentionMapControl(), 3, **settings))
    out = attn(x)
    assert torch.equal(out[[0, 2]], expected[[0, 2]])
    assert_close(out[1], attend(attn, attention_map(attn, x[0], x[0]), x[1]), rtol=1e-5, atol=1e-6)


def test_a_limit_below_all_self_attention_is_an_error() -> None:
    attn, x = attention_layer(), random_states(2, 6, 8)
    for limits, has_effect in (([0, 0], True), ([0, 6], True), ([0, 5], False)):
        control = set_control(AttentionMapControl(), 2, max_self_tokens=torch.tensor(limits))
        attn.set_processor(control)
        attn(x)
        with nullcontext() if has_effect else pytest.raises(ValueError, match=r"at least 6, .* got 5; set one of \[6\]"):
            control.check_self_tokens()


def test_processors_are_restored(base_model: TextToImageModel) -> None:
    before = base_model.unet.attn_processors
    with install_processor(base_model.unet, AttentionMapControl()):
        assert all(isinstance(processor, AttentionMapControl) for processor in base_model.unet.attn_processors.values())
    assert {name: id(p) for name, p in base_model.unet.attn_processors.items()} == {name: id(p) for name, p in before.items()}


def test_attention_over_feature_maps_is_refused() -> None:
    attn = attention_layer(norm_num_groups=4, residual_connection=True)
    attn.set_processor(set_control(AttentionMapControl(), 2))
    with pytest.raises(ValueError, match="over rows of tokens"):
        attn(random_states(2, 8, 3, 2))
