"""One, two and four processes train the same weights, to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.training.distributed import run_distributed
from emuedit.training.optim.optimization import STATE_FILE
from tests.training.tiny_training import SETTINGS, make_editor, train_for_some_steps
from tests.warm_server import warm_up

UNCLIPPED = SETTINGS.model_copy(update={"max_grad_norm": 1e9})
"""Clipping would hide gradients that are summed instead of averaged."""
MAX_DRIFT = 0.01


def read_state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / STATE_FILE, weights_only=True)


def joined(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """All elements as one vector, in the order of the names."""
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


@pytest.fixture(scope="module")
def alone(cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the training of one process."""
    folder = tmp_path_factory.mktemp("alone")
    warm_up()
    run_distributed(1, "cpu", train_for_some_steps, cache_folder, folder, UNCLIPPED)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_train_the_weights_of_one(world_size: int, alone: Path, cache_folder: Path, tmp_path: Path) -> None:
    """The gradient of the first step is the same, and the weights at the end differ by less than 1 % of their movement."""
    warm_up()
    run_distributed(world_size, "cpu", train_for_some_steps, cache_folder, tmp_path, UNCLIPPED)
    means = [
        joined({name: values["exp_avg"] for name, values in read_state(folder / "first")["optimizer"].items()})
        for folder in (tmp_path, alone)
    ]
    assert means[1].norm() > 0
    assert (means[0] - means[1]).norm() < 1e-4 * means[1].norm()
    start = joined({name: value.detach() for name, value in make_editor(UNCLIPPED).named_parameters()})
    for part in ("weights", "ema"):
        several, single = (read_state(folder / "end")[part] for folder in (tmp_path, alone))
        parameters = read_state(alone / "end")["ema"].keys()  # without buffers
        end, end_alone = (joined({name: weights[name] for name in parameters}) for weights in (several, single))
        movement = (end_alone - start).norm()
        assert movement > 0
        assert (end - end_alone).norm() < MAX_DRIFT * movement, (part, float((end - end_alone).norm() / movement))
