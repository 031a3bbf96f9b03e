"""The average of the trained weights and those of the start."""

from collections.abc import Callable

import pytest
import torch

from emuedit.editor import checkpoint
from emuedit.models import text_to_image
from emuedit.training.start_average import average_with_start
from emuedit.training.train_settings import TrainSettings
from emuedit.training.trainable_editor import TrainableEditor
from tests.stages.workspace import toy_world

TASKS = ("remove", "local", "add")
MakeEditor = Callable[..., TrainableEditor]


@pytest.fixture
def make_editor() -> MakeEditor:
    """An editor of TASKS whose trained weights all have one value."""

    def make(value: float, change_mask: bool = True, lr_mult_text: float = 0.3) -> TrainableEditor:
        base_model = text_to_image.load(toy_world()["base_model"])
        net = checkpoint.from_base_model(base_model, 8, TASKS, change_mask)
        settings = TrainSettings(steps=1, batch_size=1, lr=1e-3, lr_mult_text=lr_mult_text)
        editor = TrainableEditor(net, base_model, settings)
        with torch.no_grad():
            for weight in editor.parameters():
                weight.fill_(value)
        return editor

    return make


@pytest.mark.slow
def test_every_trained_weight_is_averaged_but_the_rows_of_new_tasks(make_editor: MakeEditor) -> None:
    trained, first = make_editor(1.0), make_editor(5.0)
    average_with_start(trained, first, 0.25, n_rows=2)
    rows = trained.net.table.v
    assert torch.equal(rows[:2], torch.full_like(rows[:2], 0.75 * 1 + 0.25 * 5))
    assert torch.equal(rows[2:], torch.ones_like(rows[2:])), "the start has no row for a new task"
    others = {name: weight for name, weight in trained.named_parameters() if weight is not rows}
    assert any(name.startswith("text.") for name in others)
    assert all(torch.equal(weight, torch.full_like(weight, 2.0)) for weight in others.values())
    assert all(bool((weight == 5).all()) for weight in first.parameters()), "the start is not changed"


@pytest.mark.slow
def test_frozen_text_encoders_are_not_averaged(make_editor: MakeEditor) -> None:
    trained, first = make_editor(1.0, lr_mult_text=0.0), make_editor(5.0, lr_mult_text=0.0)
    before = [weight.clone() for encoder in trained.parts.text_encoders for weight in encoder.parameters()]
    average_with_start(trained, first, 0.5, n_rows=3)
    after = [weight for encoder in trained.parts.text_encoders for weight in encoder.parameters()]
    assert all(map(torch.equal, before, after))


@pytest.mark.slow
def test_editors_with_other_weights_are_refused_and_nothing_changes(make_editor: MakeEditor) -> None:
    trained, first = make_editor(1.0), make_editor(5.0, change_mask=False)
    with pytest.raises(ValueError, match=r"want two editors with equal weights, got different ones at net\.unet\.conv_out"):
        average_with_start(trained, first, 0.5, n_rows=3)
    assert all(bool((weight == 1).all()) for weight in trained.parameters())
