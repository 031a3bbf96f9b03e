"""Cells of the latents in which the editor predicts no change keep the picture's pixels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from emuedit.core import compositing
from emuedit.editor.sampling import EditSampler
from emuedit.editor.unet import Prediction
from emuedit.models.text_to_image import TextCondition
from tests.editor.test_sampling import UNGUIDED, pictures
from tests.editor.tiny_pipelines import KINDS

COMPOSITE = UNGUIDED.with_changes({"composite": 1, "preserve": 0.0, "steps": 1})


class LeftHalfChanges(torch.nn.Module):
    """Paints everything anew, and says that only the left half changes."""

    def __init__(self, sampler: EditSampler) -> None:
        super().__init__()
        self.table = sampler.net.table

    def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor) -> Prediction:
        logits = torch.full_like(z_t[:, :1], -9.0)
        logits[..., : logits.shape[-1] // 2] = 9.0
        return Prediction(torch.ones_like(z_t), logits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [16, 13])
def test_only_predicted_cells_of_an_object_are_edited(kind: str, width: int, make_sampler: Callable[..., EditSampler]) -> None:
    sampler, images = make_sampler(kind), pictures(2, 16, width)
    sampler.net = LeftHalfChanges(sampler)  # type: ignore[assignment]
    local, style = (sampler.sample(images, ["a", "b"], [task] * 2, COMPOSITE) for task in ("remove", "style"))
    assert torch.equal(local[..., 8:], images[..., 8:])
    assert torch.equal(local[..., :8], style[..., :8])
    assert (style[..., 8:] != images[..., 8:]).any(), "a task of the whole picture is exempt"
    mixed = sampler.sample(images, ["a", "b"], ["style", "remove"], COMPOSITE)
    torch.testing.assert_close(mixed[1], local[1], rtol=1e-4, atol=1e-4)
    assert (mixed[0][..., 8:] != images[0][..., 8:]).any()
    off = sampler.sample(images, ["a", "b"], ["remove"] * 2, COMPOSITE.with_changes({"composite": 0}))
    torch.testing.assert_close(off, style)


def test_a_seam_is_the_step_at_the_border_that_was_not_there_before() -> None:
    before = torch.zeros(1, 3, 4, 6)
    after = before.clone()
    assert compositing.seam(before, after) == 0
    after[..., 3:] = 0.5  # of the range of 2: a quarter of [0, 1]
    assert compositing.seam(before, after) == pytest.approx(0.25)
    assert compositing.seam(after, torch.full_like(after, 0.5)) == pytest.approx(-0.25)
    assert compositing.seam(before, torch.ones_like(before)) == 0


def test_a_cell_counts_from_one_half_on() -> None:
    before, after = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    change = torch.tensor([[[[0.5, 0.49], [0.0, 1.0]]]])
    kept = compositing.keep_unchanged_cells(before, after, change, 2)[0, 0]
    assert kept.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
