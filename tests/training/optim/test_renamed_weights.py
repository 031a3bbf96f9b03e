"""Weights that accelerate's wrappers rename."""

from typing import Any

import pytest
import torch
from torch import nn

from emuedit.training.optim.lr_schedule import LrSchedule
from emuedit.training.optim.optimization import Optimization, OptimizationError


class WrappingAccelerator:
    """Wraps a layer in place, as FSDP1 does with each of its units."""

    def prepare(self, module: nn.Sequential, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The module, in which the names of the first layer's weights have one more part."""
        module[0] = nn.Sequential(module[0])
        return module, optimizer


def test_a_training_whose_weights_are_renamed_is_refused() -> None:
    """They would have no part in clipping, the average and the saved state, without an error."""
    module, accelerator = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), WrappingAccelerator()
    arguments: Any = {"weight_decay": 0.0, "max_grad_norm": 1.0, "accelerator": accelerator}
    with pytest.raises(OptimizationError, match=r"want the names of all 4 trained .*, got 2 renamed, such as 0\.bias, .*fsdp"):
        Optimization(module, LrSchedule(1, 0.1, 0, 0.0), **arguments)
