"""FSDP2 in half precision: losses stay float32, and float16's gradient scaler works with frozen weights."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn

from emuedit.training.batches.batch import Batch
from emuedit.training.distributed import open_accelerator
from emuedit.training.loss import NO_DROPOUT, draw_noise
from emuedit.training.optim.lr_schedule import LrSchedule
from emuedit.training.optim.optimization import Optimization
from emuedit.training.optim.sharded_tensors import to_full
from tests.training.sharded_processes import lone_process, shard_layers, sharding_accelerator
from tests.training.tiny_training import SETTINGS, make_editor

WEIGHTS = SETTINGS.loss_weights


@pytest.fixture(autouse=True)
def sharding(tmp_path: Path) -> Iterator[None]:
    with lone_process(tmp_path):
        yield


def open_plugin(dtype: str, monkeypatch: pytest.MonkeyPatch) -> FullyShardedDataParallelPlugin:
    """accelerate's plugin after `open_accelerator` on a GPU with `infra/accelerate/fsdp.yaml`."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)

    def open_sharding(mixed_precision: str, **options: Any) -> SimpleNamespace:
        plugin.set_mixed_precision(mixed_precision)
        state = SimpleNamespace(fsdp_plugin=plugin)
        return SimpleNamespace(device=torch.device("cpu"), is_fsdp2=True, state=state)

    with monkeypatch.context() as patch:
        patch.setattr(accelerate, "Accelerator", open_sharding)
        with open_accelerator(dtype=dtype):
            return plugin


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["toy", "sdxl"])
def test_losses_in_half_precision_are_computed_in_float32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From latents and noise in float32; accelerate would cast those and the losses to bfloat16."""
    editor = make_editor(SETTINGS.model_copy(update={"dtype": "bfloat16"}), kind)
    editor.prepare(torch.device("cpu"), is_sharded=True)
    random = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 4, editor.parts.channels, 8, 8, generator=random)
    instructions = ("make it red",) * 4
    text, null = editor.parts.encode_text(instructions), editor.parts.null_text(1)
    batch = Batch(source, target, text, null, torch.zeros(4, dtype=torch.long), tuple("abcd"), instructions)
    draws = draw_noise(tuple(target.shape), 1000, NO_DROPOUT, 1.0, "test")
    with torch.no_grad():
        want = editor(batch, draws, WEIGHTS)
    losses = shard_layers(editor, policy=open_plugin("bfloat16", monkeypatch).mixed_precision_policy)(batch, draws, WEIGHTS)
    for part, loss in losses._asdict().items():
        assert loss.dtype == torch.float32, part
        assert not torch.equal(loss, loss.bfloat16().float()), f"{part} was rounded to bfloat16"
        torch.testing.assert_close(loss, getattr(want, part), rtol=0.02, atol=0)
    losses.total(WEIGHTS).mean().backward()
    assert all(value.grad is not None for value in editor.net.parameters())


def train(accelerator: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    schedule = LrSchedule(steps=9, lr=0.1, warmup_steps=0, decay_share=0.0)
    optimization = Optimization(module, schedule, weight_decay=0.1, max_grad_norm=0.01, accelerator=accelerator)
    norms = []
    for step in range(3):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimization.backward(optimization.model(inputs).sub(1).square().mean())
        norms.append(optimization.update())
    return {name: to_full(value).clone() for name, value in module.named_parameters()} | {"norms": torch.stack(norms)}


def test_scaled_gradients_are_unscaled_once_where_weights_are_frozen() -> None:
    """As with adapters: accelerate's own clipping unscales them twice if some weights of the module are not clipped."""
    with sharding_accelerator() as accelerator:
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
        accelerator.state._mixed_precision = "fp16"
        scaled = train(accelerator)
    torch.testing.assert_close(scaled, train(None))
