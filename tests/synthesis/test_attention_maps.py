from typing import Any

import pytest
import torch
from torch.testing import assert_close

from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.methods.attention_maps import Maps, MapsProcessor, watched

LAYERS: dict[str, dict[str, Any]] = {
    "self": {},
    "cross": {"cross_attention_dim": 6},
    "cross, normed": {"cross_attention_dim": 6, "cross_attention_norm": "layer_norm"},
    "queries and keys normed": {"qk_norm": "layer_norm"},
    "upcast": {"upcast_attention": True, "cross_attention_dim": 6},
}


def layer(**options: Any) -> Any:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    return Attention(query_dim=8, heads=2, dim_head=4, **options).eval()


def states(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def told(n: int, first: int = 0) -> Maps:
    """n rows that want nothing."""
    maps = Maps()
    maps.source_row, maps.self_tokens = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    maps.edited = maps.its_source = torch.zeros(0, dtype=torch.int64)
    maps.A, maps.own, maps.weight = torch.zeros(0, 5, 5), torch.zeros(0, 5), torch.ones(0, 5)
    maps.first_text_row, maps.read = first, frozenset()
    return maps


def heads(one: torch.Tensor) -> torch.Tensor:
    return one.unflatten(-1, (2, 4)).transpose(-2, -3)


def probabilities(attn: Any, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    return (heads(attn.to_q(x)) @ heads(attn.to_k(context)).mT / 2).softmax(-1)


def result(attn: Any, P: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    return attn.to_out[0]((P @ heads(attn.to_v(context))).transpose(-2, -3).flatten(-2))


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("masked", [False, True])
def test_whoever_wants_nothing_gets_diffusers_own(options: dict[str, Any], masked: bool) -> None:
    attn, x = layer(**options), states(2, 6, 8)
    context = states(2, 5, 6) if "cross_attention_dim" in options else None
    n = 6 if context is None else 5
    mask = torch.where(torch.arange(n) == 1, -10000.0, 0.0).expand(2, 1, n) if masked else None
    want = attn(x, context, attention_mask=mask)
    attn.set_processor(MapsProcessor(told(2)))
    assert torch.equal(attn(x, context, attention_mask=mask), want)


@pytest.mark.parametrize("options", [one for one in LAYERS.values() if "cross_attention_dim" in one])
@pytest.mark.parametrize("masked", [False, True])
def test_maps_made_in_full_attend_as_diffusers_does(options: dict[str, Any], masked: bool) -> None:
    attn, x, context = layer(**options), states(3, 6, 8), states(3, 5, 6)
    mask = torch.where(torch.arange(5) == 1, -10000.0, 0.0).expand(3, 1, 5) if masked else None
    want, maps = attn(x, context, attention_mask=mask), told(3, first=1)
    maps.read = frozenset({6})
    attn.set_processor(MapsProcessor(maps))
    assert_close(attn(x, context, attention_mask=mask), want, rtol=1e-5, atol=1e-6)
    assert maps.seen(6).shape == (2, 6, 5)
    assert_close(maps.seen(6).sum(-1), torch.ones(2, 6))


def test_edited_maps_are_the_papers_formula() -> None:
    attn, x, context = layer(cross_attention_dim=6), states(4, 6, 8), states(4, 5, 6)  # two rows without text, two with
    plain, maps = attn(x, context), told(4, first=2)
    maps.edited, maps.its_source, maps.read = torch.tensor([3]), torch.tensor([2]), frozenset({6})
    maps.A, maps.own, maps.weight = states(1, 5, 5).abs(), states(1, 5).abs(), states(1, 5).abs() + 1
    attn.set_processor(MapsProcessor(maps))
    got = attn(x, context)
    assert_close(got[:3], plain[:3], rtol=1e-5, atol=1e-6)
    P_s, P_t = (probabilities(attn, x[row], context[row]) for row in (2, 3))
    P = (P_s @ maps.A[0] + P_t * maps.own[0]) * maps.weight[0]
    assert_close(got[3], result(attn, P, context[3]), rtol=1e-4, atol=1e-6)
    assert_close(maps.seen(6), torch.stack([P_s, P_t]).mean(1), rtol=1e-5, atol=1e-6)  # as they were before the edit


def test_maps_are_averaged_over_layers_and_steps() -> None:
    attn, x, context = layer(cross_attention_dim=6), states(2, 6, 8), states(2, 5, 6)
    maps = told(2)
    maps.read = frozenset({6})
    attn.set_processor(MapsProcessor(maps))
    both = []
    for factor in (1.0, -2.0):
        attn(factor * x, context)
        both.append(probabilities(attn, factor * x, context).mean(1))
    assert_close(maps.seen(6), torch.stack(both).mean(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"layers of 9 tokens, got those of \[6\]"):
        maps.seen(9)


def test_self_attention_is_taken_in_small_layers_only() -> None:
    attn, x = layer(), states(3, 6, 8)
    plain, maps = attn(x), told(3)
    maps.source_row, maps.self_tokens = torch.tensor([0, 0, 0]), torch.tensor([0, 6, 5])
    attn.set_processor(MapsProcessor(maps))
    got = attn(x)
    assert torch.equal(got[[0, 2]], plain[[0, 2]])
    assert_close(got[1], result(attn, probabilities(attn, x[0], x[0]), x[1]), rtol=1e-5, atol=1e-6)


def test_the_unet_gets_its_processors_back_and_adapters_are_named(base_model: TextToImageModel) -> None:
    before = base_model.unet.attn_processors
    with watched(base_model.unet):
        assert all(isinstance(one, MapsProcessor) for one in base_model.unet.attn_processors.values())
    assert {name: id(one) for name, one in base_model.unet.attn_processors.items()} == {n: id(p) for n, p in before.items()}

    class Adapter:
        def __call__(self, attn: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
            return hidden_states

    try:
        base_model.unet.set_attn_processor(Adapter())
        with pytest.raises(ValueError, match=r"plain attention.*\['Adapter'\]"), watched(base_model.unet):
            pass
    finally:
        base_model.unet.set_attn_processor(dict(before))


def test_attention_over_channels_is_refused() -> None:
    attn = layer(norm_num_groups=4, residual_connection=True)
    attn.set_processor(MapsProcessor(told(2)))
    with pytest.raises(ValueError, match="over rows of tokens"):
        attn(states(2, 8, 3, 2))
