"""DDP's buckets of gradients in the estimate of a preview, and that PyTorch keeps them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from emuedit.training.memory.memory_estimator import MemoryEstimator
from emuedit.training.memory.memory_plan import MemoryPlan
from tests.editor.tiny_pipelines import build_base_model, build_editor_unet
from tests.training.sharded_processes import lone_process

pytestmark = pytest.mark.slow


def test_previews_of_several_processes_leave_the_buckets_of_gradients_on_the_gpu() -> None:
    """The parts that are frozen are so large here that the peak is in the preview."""
    base_model = build_base_model("sd15")
    net = build_editor_unet(base_model)
    estimator = MemoryEstimator(net, (), 500 * [base_model.vae])
    alone = MemoryPlan(latent=(4, 8, 8), n_tokens=16, previews=True)
    ddp, n_weights = replace(alone, world_size=2), sum(parameter.numel() for parameter in net.parameters())
    estimates = [estimator.estimate(plan) for plan in (alone, ddp, replace(ddp, fsdp=True))]
    assert [estimate.activations for estimate in estimates] == [0, 0, 0]
    assert [estimate.gradients for estimate in estimates] == [0, 4 * n_weights, 0], "FSDP frees its shards"
    assert estimates[1].certain - estimates[0].certain == 4 * n_weights


def test_buckets_stay_when_gradients_are_freed(tmp_path: Path) -> None:
    """The gradients of the next step are at the same address, although other memory was asked for in between."""
    net, addresses = nn.Linear(512, 512), []
    with lone_process(tmp_path):
        model = DistributedDataParallel(net, gradient_as_bucket_view=True)
        for _ in range(4):
            model(torch.ones(1, 512)).sum().backward()
            assert net.weight.grad is not None
            addresses.append(net.weight.grad.data_ptr())
            net.zero_grad(set_to_none=True)
            addresses.append(torch.empty(512 * 512 + 512).data_ptr())
    assert len(set(addresses[2::2])) == 1, "buckets are made anew once, after the first step"
    assert not set(addresses[2::2]) & set(addresses[3::2])
