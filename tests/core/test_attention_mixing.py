import pytest
import torch
from torch.testing import assert_close

from emuedit.core import attention_mixing


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_mask_0_gives_the_source_and_mask_1_the_row_bit_for_bit(dtype: torch.dtype) -> None:
    out, source_row = noise(4, 6, 5, dtype=dtype), torch.tensor([0, 0, 2, 2])
    M = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(4, 1, 1).expand(4, 6, 1)
    mixed_out = attention_mixing.mix_outputs(out, out[source_row], M)
    assert torch.equal(mixed_out[0], out[0])
    assert torch.equal(mixed_out[1], out[0])
    assert torch.equal(mixed_out[3], out[3])


def test_mix_outputs_is_the_formula_at_every_token() -> None:
    out, source_row = noise(3, 6, 5, dtype=torch.float64), torch.tensor([0, 0, 0])
    M = torch.rand(3, 6, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(attention_mixing.mix_outputs(out, out[source_row], M), M * out + (1 - M) * out[:1], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"M must be \(3, 6, 1\) .* got \(3, 1, 6\)"):
        attention_mixing.mix_outputs(out, out[source_row], M.transpose(1, 2))


def test_queries_come_from_the_source_where_active() -> None:
    rows, source_row = torch.arange(4), torch.tensor([0, 0, 0, 3])
    active = torch.tensor([True, True, False, True])
    assert attention_mixing.injection_rows(rows, source_row, active).tolist() == [0, 0, 2, 3]


@pytest.mark.parametrize(("n_tokens", "grid"), [(15 * 9, (15, 9)), (8 * 5, (8, 5)), (4 * 3, (4, 3)), (1, (1, 1))])
def test_layer_grid_at_every_level_of_an_odd_size(n_tokens: int, grid: tuple[int, int]) -> None:
    assert attention_mixing.layer_grid(n_tokens, 15, 9) == grid


def test_a_number_of_tokens_that_fits_no_level_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"want a layer of 16x8 or 8x4 or 4x2 or 2x1 or 1x1 tokens.*got 77"):
        attention_mixing.layer_grid(77, 16, 8)


def test_mask_tokens_are_in_row_order() -> None:
    M = torch.zeros(1, 1, 4, 6)
    M[..., 0:2, 4:6] = 1  # the upper right corner of a grid that is wider than high
    assert attention_mixing.mask_to_tokens(M, 2, 3)[0, :, 0].tolist() == [0, 0, 1, 0, 0, 0]
    assert attention_mixing.mask_to_tokens(M, 1, 1).item() == pytest.approx(1 / 6)
