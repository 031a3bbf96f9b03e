from typing import Any

import pytest
import torch
from torch.testing import assert_close

from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.attention_control import Control, SoftMaskProcessor, controlled

LAYERS: dict[str, dict[str, Any]] = {
    "self": {},
    "cross": {"cross_attention_dim": 6},
    "cross, normed": {"cross_attention_dim": 6, "cross_attention_norm": "layer_norm"},
    "of a VAE": {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 2.0, "bias": True},
    "queries and keys normed": {"qk_norm": "layer_norm"},
    "upcast": {"upcast_attention": True},
}


def layer(**options: Any) -> Any:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    return Attention(query_dim=8, heads=2, dim_head=4, **options).eval()


def states(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def controlling(rows: list[int], M: torch.Tensor, inject: list[bool], size: tuple[int, int]) -> Control:
    control = Control()
    control.set(torch.tensor(rows), M, torch.tensor(inject), size)
    return control


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("masked", [False, True])
def test_without_anything_to_mix_it_is_diffusers_own(options: dict[str, Any], masked: bool) -> None:
    attn = layer(**options)
    x = states(2, 8, 3, 2) if "norm_num_groups" in options else states(2, 6, 8)
    context = states(2, 5, 6) if "cross_attention_dim" in options else None
    n = 6 if context is None else 5
    mask = torch.where(torch.arange(n) == 1, -10000.0, 0.0).expand(2, 1, n) if masked else None
    want = attn(x, context, attention_mask=mask)
    attn.set_processor(SoftMaskProcessor(controlling([0, 1], torch.ones(2, 1, 3, 2), [False, False], (3, 2))))
    assert torch.equal(attn(x, context, attention_mask=mask), want)


@pytest.mark.parametrize("context", [None, states(2, 5, 6)])
def test_outputs_are_mixed_at_each_place(context: torch.Tensor | None) -> None:
    attn = layer(**({} if context is None else {"cross_attention_dim": 6}))
    x = states(2, 6, 8)
    plain = attn(x, context)
    M = torch.ones(2, 1, 3, 2)
    M[1, 0] = torch.tensor([[0.0, 0.25], [0.5, 0.75], [1.0, 0.0]])
    attn.set_processor(SoftMaskProcessor(controlling([0, 0], M, [False, False], (3, 2))))
    at = M[1].reshape(6, 1)
    got = attn(x, context)
    assert torch.equal(got[0], plain[0])
    assert_close(got[1], at * plain[1] + (1 - at) * plain[0], rtol=1e-5, atol=1e-6)


def test_self_attention_looks_where_the_source_looks() -> None:
    attn, x = layer(), states(3, 6, 8)
    attn.set_processor(SoftMaskProcessor(controlling([0, 0, 0], torch.ones(3, 1, 3, 2), [False, True, False], (3, 2))))
    got = attn(x)

    def heads(one: torch.Tensor) -> torch.Tensor:
        return one.unflatten(-1, (2, 4)).transpose(0, 1)

    weights = (heads(attn.to_q(x[0])) @ heads(attn.to_k(x[0])).mT / 2).softmax(-1)
    want = attn.to_out[0]((weights @ heads(attn.to_v(x[1]))).transpose(0, 1).flatten(1))
    assert_close(got[1], want, rtol=1e-5, atol=1e-6)
    attn.set_processor(SoftMaskProcessor(controlling([0, 0, 0], torch.ones(3, 1, 3, 2), [False] * 3, (3, 2))))
    assert torch.equal(got[[0, 2]], attn(x)[[0, 2]])


def test_cross_attention_keeps_its_own_queries() -> None:
    attn, x, context = layer(cross_attention_dim=6), states(2, 6, 8), states(2, 5, 6)
    plain = attn(x, context)
    attn.set_processor(SoftMaskProcessor(controlling([0, 0], torch.ones(2, 1, 3, 2), [False, True], (3, 2))))
    assert torch.equal(attn(x, context), plain)


def test_the_unet_gets_its_processors_back(base_model: TextToImageModel) -> None:
    before = base_model.unet.attn_processors

    def stop() -> None:
        assert all(isinstance(one, SoftMaskProcessor) for one in base_model.unet.attn_processors.values())
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"), controlled(base_model.unet):
        stop()
    assert {name: id(one) for name, one in base_model.unet.attn_processors.items()} == {n: id(p) for n, p in before.items()}


def test_adapters_are_not_switched_off_silently(base_model: TextToImageModel) -> None:
    class Adapter:
        def __call__(self, attn: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
            return hidden_states

    before = base_model.unet.attn_processors
    try:
        base_model.unet.set_attn_processor(Adapter())
        with pytest.raises(ValueError, match=r"plain attention.*\['Adapter'\]"), controlled(base_model.unet):
            pass
    finally:
        base_model.unet.set_attn_processor(dict(before))


def test_what_was_not_set_or_does_not_fit_is_named(base_model: TextToImageModel) -> None:
    x, t, text = base_model.noise([torch.Generator().manual_seed(0)] * 2), 5, base_model.encode_text(["a", "b"])
    M = torch.zeros(2, 1, 16, 16)
    with controlled(base_model.unet) as control:
        with torch.no_grad(), pytest.raises(ValueError, match=r"call Control\.set before every forward"):
            base_model.predict(x, t, text)
        control.set(torch.tensor([0, 0]), M, torch.tensor([False, False]), (6, 6))  # the latents are 8 x 8
        with torch.no_grad(), pytest.raises(ValueError, match=r"for latents of 6 x 6, got (64|16)"):
            base_model.predict(x, t, text)
        control.set(torch.tensor([0, 0, 0]), torch.zeros(3, 1, 16, 16), torch.tensor([False] * 3), (8, 8))
        with torch.no_grad(), pytest.raises(ValueError, match="set for 3 rows, the forward has 2"):
            base_model.predict(x, t, text)
        with pytest.raises(ValueError, match="got 2, 3, 2"):
            control.set(torch.tensor([0, 0]), torch.zeros(3, 1, 16, 16), torch.tensor([False] * 2), (8, 8))
