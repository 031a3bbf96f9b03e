"""Attention for training on a CPU in half precision: plain products for few tokens, torch's fused attention for many."""

from typing import Any

import pytest
import torch

from emuedit.models.attention_processor import (
    MAX_UNFUSED_SCORES,
    HookedAttnProcessor,
    ShortUnfusedAttnProcessor,
    install_processor,
    use_unfused_attention_on_cpu,
)
from emuedit.models.text_to_image import TextToImageModel

WIDTH, HEADS, N_TEXT = 8, 2, 12


@pytest.fixture
def layer() -> Any:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    return Attention(WIDTH, WIDTH, heads=HEADS, dim_head=WIDTH // HEADS)


def largest_kept_tensor(layer: Any, hidden: torch.Tensor, text: torch.Tensor | None) -> int:
    """Elements of the largest tensor that autograd keeps for the backward pass."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
        layer(hidden, text)
    return max(sizes)


@pytest.mark.parametrize("shape", [(2, 256, WIDTH), (2, WIDTH, 16, 16), (2, 300, WIDTH), (2, WIDTH, 15, 20)])
@pytest.mark.parametrize("text", [None, torch.randn(2, N_TEXT, WIDTH, generator=torch.Generator().manual_seed(1))])
def test_few_and_many_tokens_attend_like_the_default(layer: Any, shape: tuple[int, ...], text: torch.Tensor | None) -> None:
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    expected = layer(hidden, text)
    layer.set_processor(ShortUnfusedAttnProcessor())
    torch.testing.assert_close(layer(hidden, text), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "n_text", "keeps_scores"), [(256, 0, True), (257, 0, False), (4096, 16, True), (4096, 17, False)])
def test_scores_are_kept_for_short_sequences_only(layer: Any, n: int, n_text: int, keeps_scores: bool) -> None:
    layer.set_processor(ShortUnfusedAttnProcessor())
    text = torch.randn(1, n_text, WIDTH) if n_text else None
    n_scores = HEADS * n * (n_text or n)
    assert (largest_kept_tensor(layer, torch.randn(1, n, WIDTH), text) == n_scores) == keeps_scores
    assert (n * (n_text or n) <= MAX_UNFUSED_SCORES) == keeps_scores


def test_attention_changes_in_half_precision_only(base_model: TextToImageModel) -> None:
    before = base_model.unet.attn_processors
    use_unfused_attention_on_cpu(base_model.unet, [], torch.float32)
    assert base_model.unet.attn_processors == before
    use_unfused_attention_on_cpu(base_model.unet, [], torch.bfloat16)
    assert {type(processor) for processor in base_model.unet.attn_processors.values()} == {ShortUnfusedAttnProcessor}
    base_model.unet.set_attn_processor(dict(before))


def test_a_network_that_was_trained_on_a_cpu_accepts_processors_with_hooks(base_model: TextToImageModel) -> None:
    before = base_model.unet.attn_processors
    use_unfused_attention_on_cpu(base_model.unet, [], torch.bfloat16)
    trained = base_model.unet.attn_processors
    with install_processor(base_model.unet, HookedAttnProcessor()):
        assert {type(processor) for processor in base_model.unet.attn_processors.values()} == {HookedAttnProcessor}
    assert base_model.unet.attn_processors == trained
    base_model.unet.set_attn_processor(dict(before))
