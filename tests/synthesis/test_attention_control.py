from typing import Any

import pytest
import torch
from torch.testing import assert_close

from emuedit.models.attention_processor import install_processor
from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.attention_control import MaskControl

LAYERS: dict[str, dict[str, Any]] = {
    "self": {},
    "cross": {"cross_attention_dim": 6},
    "cross with norm": {"cross_attention_dim": 6, "cross_attention_norm": "layer_norm"},
    "of a VAE": {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 2.0, "bias": True},
    "norm of queries and keys": {"qk_norm": "layer_norm"},
    "upcast": {"upcast_attention": True},
}


def attention_layer(**options: Any) -> Any:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    return Attention(query_dim=8, heads=2, dim_head=4, **options).eval()


def random_states(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def make_control(source_row: list[int], M: torch.Tensor, inject: list[bool], size: tuple[int, int]) -> MaskControl:
    control = MaskControl()
    control.set(torch.tensor(source_row), M, torch.tensor(inject), size)
    return control


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("masked", [False, True])
def test_without_mixing_the_result_equals_that_of_diffusers(options: dict[str, Any], masked: bool) -> None:
    attn = attention_layer(**options)
    x = random_states(2, 8, 3, 2) if "norm_num_groups" in options else random_states(2, 6, 8)
    context = random_states(2, 5, 6) if "cross_attention_dim" in options else None
    n = 6 if context is None else 5
    mask = torch.where(torch.arange(n) == 1, -10000.0, 0.0).expand(2, 1, n) if masked else None
    expected = attn(x, context, attention_mask=mask)
    attn.set_processor(make_control([0, 1], torch.ones(2, 1, 3, 2), [False, False], (3, 2)))
    assert torch.equal(attn(x, context, attention_mask=mask), expected)


@pytest.mark.parametrize("context", [None, random_states(2, 5, 6)])
def test_outputs_are_mixed_by_the_mask_of_every_token(context: torch.Tensor | None) -> None:
    attn = attention_layer(**({} if context is None else {"cross_attention_dim": 6}))
    x = random_states(2, 6, 8)
    unmixed = attn(x, context)
    M = torch.ones(2, 1, 3, 2)
    M[1, 0] = torch.tensor([[0.0, 0.25], [0.5, 0.75], [1.0, 0.0]])
    attn.set_processor(make_control([0, 0], M, [False, False], (3, 2)))
    token_mask = M[1].reshape(6, 1)
    out = attn(x, context)
    assert torch.equal(out[0], unmixed[0])
    assert_close(out[1], token_mask * unmixed[1] + (1 - token_mask) * unmixed[0], rtol=1e-5, atol=1e-6)


def test_injected_self_attention_has_the_maps_of_the_source() -> None:
    attn, x = attention_layer(), random_states(3, 6, 8)
    attn.set_processor(make_control([0, 0, 0], torch.ones(3, 1, 3, 2), [False, True, False], (3, 2)))
    out = attn(x)

    def split_heads(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (2, 4)).transpose(0, 1)

    P_source = (split_heads(attn.to_q(x[0])) @ split_heads(attn.to_k(x[0])).mT / 2).softmax(-1)
    expected = attn.to_out[0]((P_source @ split_heads(attn.to_v(x[1]))).transpose(0, 1).flatten(1))
    assert_close(out[1], expected, rtol=1e-5, atol=1e-6)
    attn.set_processor(make_control([0, 0, 0], torch.ones(3, 1, 3, 2), [False] * 3, (3, 2)))
    assert torch.equal(out[[0, 2]], attn(x)[[0, 2]])


def test_cross_attention_is_not_injected() -> None:
    attn, x, context = attention_layer(cross_attention_dim=6), random_states(2, 6, 8), random_states(2, 5, 6)
    expected = attn(x, context)
    attn.set_processor(make_control([0, 0], torch.ones(2, 1, 3, 2), [False, True], (3, 2)))
    assert torch.equal(attn(x, context), expected)


def test_processors_are_restored(base_model: TextToImageModel) -> None:
    before = base_model.unet.attn_processors

    def stop() -> None:
        assert all(isinstance(processor, MaskControl) for processor in base_model.unet.attn_processors.values())
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"), install_processor(base_model.unet, MaskControl()):
        stop()
    assert {name: id(p) for name, p in base_model.unet.attn_processors.items()} == {name: id(p) for name, p in before.items()}


def test_adapters_are_refused(base_model: TextToImageModel) -> None:
    class Adapter:
        def __call__(self, attn: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
            return hidden_states

    before = base_model.unet.attn_processors
    try:
        base_model.unet.set_attn_processor(Adapter())
        with (
            pytest.raises(ValueError, match=r"plain attention.*\['Adapter'\]"),
            install_processor(base_model.unet, MaskControl()),
        ):
            pass
    finally:
        base_model.unet.set_attn_processor(dict(before))


def test_a_control_that_is_not_set_or_does_not_fit_is_refused(base_model: TextToImageModel) -> None:
    x, t, text = base_model.initial_noise([torch.Generator().manual_seed(0)] * 2), 5, base_model.encode_text(["a", "b"])
    M = torch.zeros(2, 1, 16, 16)
    with install_processor(base_model.unet, MaskControl()) as control:
        with torch.no_grad(), pytest.raises(ValueError, match=r"call MaskControl\.set before every forward"):
            base_model.predict(x, t, text)
        control.set(torch.tensor([0, 0]), M, torch.tensor([False, False]), (6, 6))  # the latents are 8 x 8
        with torch.no_grad(), pytest.raises(ValueError, match=r"for latents of 6 x 6, got (64|16)"):
            base_model.predict(x, t, text)
        control.set(torch.tensor([0, 0, 0]), torch.zeros(3, 1, 16, 16), torch.tensor([False] * 3), (8, 8))
        with torch.no_grad(), pytest.raises(ValueError, match="set for 3 rows, the forward pass has 2"):
            base_model.predict(x, t, text)
        with pytest.raises(ValueError, match="got 2, 3, 2"):
            control.set(torch.tensor([0, 0]), torch.zeros(3, 1, 16, 16), torch.tensor([False] * 2), (8, 8))
