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

COMPOSITE = UNGUIDED.with_changes({"composite": 1, "border_px": 0, "preserve": 0.0, "steps": 1})


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
    local, style = (sampler.sample(images, ["a", "b"], [task] * 2, COMPOSITE).images for task in ("remove", "style"))
    assert torch.equal(local[..., 8:], images[..., 8:])
    assert torch.equal(local[..., :8], style[..., :8])
    assert (style[..., 8:] != images[..., 8:]).any(), "a task of the whole picture is exempt"
    mixed = sampler.sample(images, ["a", "b"], ["style", "remove"], COMPOSITE).images
    torch.testing.assert_close(mixed[1], local[1], rtol=1e-4, atol=1e-4)
    assert (mixed[0][..., 8:] != images[0][..., 8:]).any()
    off = sampler.sample(images, ["a", "b"], ["remove"] * 2, COMPOSITE.with_changes({"composite": 0})).images
    torch.testing.assert_close(off, style)


def test_a_seam_is_the_step_at_the_border_that_was_not_there_before() -> None:
    before = torch.zeros(1, 3, 4, 6)
    after = before.clone()
    assert compositing.seam(before, after) == 0
    after[..., 3:] = 0.5  # of the range of 2: a quarter of [0, 1]
    assert compositing.seam(before, after) == pytest.approx(0.25)
    assert compositing.seam(after, torch.full_like(after, 0.5)) == pytest.approx(-0.25)
    assert compositing.seam(before, torch.ones_like(before)) == 0


def test_the_seam_below_a_soft_border_is_measured_by_depth() -> None:
    before = torch.zeros(1, 3, 8, 12)
    after = before.clone()
    after[..., 4], after[..., 5], after[..., 6:] = 0.25, 0.75, 1.0
    assert [compositing.seam(before, after, depth) for depth in range(4)] == pytest.approx([0.125, 0.25, 0.125, 0])


def test_a_cell_counts_from_one_half_on() -> None:
    change = torch.tensor([[[[0.5, 0.49], [0.0, 1.0]]]])
    changed = compositing.changed_cells(change, 2, 4, 3)[0, 0].int()
    assert changed.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]]


@pytest.mark.slow
def test_the_edit_fades_in_inside_the_predicted_cells_only(make_sampler: Callable[..., EditSampler]) -> None:
    sampler, images = make_sampler(), pictures(2, 16, 16)
    sampler.net = LeftHalfChanges(sampler)  # type: ignore[assignment]
    hard, soft = (
        sampler.sample(images, ["a", "b"], ["remove", "style"], COMPOSITE.with_changes({"border_px": px})).images for px in (0, 2)
    )
    assert torch.equal(soft[0, ..., 8:], images[0, ..., 8:])
    assert torch.equal(soft[0, ..., :6], hard[0, ..., :6])
    torch.testing.assert_close(soft[0, ..., 6], images[0, ..., 6] / 3 + hard[0, ..., 6] * 2 / 3)
    torch.testing.assert_close(soft[0, ..., 7], images[0, ..., 7] * 2 / 3 + hard[0, ..., 7] / 3)
    assert torch.equal(soft[1], hard[1]), "a task of the whole picture has no border"
