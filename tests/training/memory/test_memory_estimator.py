"""The estimate of a training's memory: counts on meta tensors against real ones, the parts by arithmetic, and the check."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from emuedit.models.attention_processor import MAX_UNFUSED_SCORES, use_unfused_attention_on_cpu
from emuedit.training import lora
from emuedit.training.lora import LoraSettings
from emuedit.training.memory.activation_memory import AllocationCounter, PassMemory, measure_pass
from emuedit.training.memory.memory_estimator import MemoryEstimator
from emuedit.training.memory.memory_plan import MemoryPlan
from emuedit.training.memory.meta_step import MetaAutocast, editor_loss, meta_copy
from tests.editor.tiny_pipelines import build_base_model, build_editor_unet

N_TOKENS, BATCH = 16, 3
LORA, DORA = LoraSettings(rank=2), LoraSettings(rank=2, dora=True)
PLAN = MemoryPlan(latent=(4, 8, 8), n_tokens=N_TOKENS, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def estimator() -> MemoryEstimator:
    return MemoryEstimator(build_editor_unet(build_base_model("sd15")))


def trained_modules(
    kind: str, *, train_text: bool = False, adapters: LoraSettings | None = None, dtype: torch.dtype = torch.float32
) -> nn.ModuleList:
    """A network as it is trained on a CPU."""
    base_model = build_base_model(kind)
    modules = nn.ModuleList([build_editor_unet(base_model), *(base_model.text_encoders if train_text else [])])
    modules.train().requires_grad_(True)
    if adapters:
        lora.add_adapters(modules[0].unet, adapters)
    use_unfused_attention_on_cpu(modules[0].unet, modules[1:], dtype)
    return modules


def real_pass(modules: nn.ModuleList, latent: tuple[int, int, int], autocast: AbstractContextManager[Any]) -> PassMemory:
    def forward() -> Tensor:
        with autocast:
            return editor_loss(modules[0], modules[1:], latent, N_TOKENS, BATCH)

    return measure_pass(forward, modules.parameters(), "cpu")


def estimated_pass(modules: nn.ModuleList, plan: MemoryPlan) -> PassMemory:
    plan = replace(plan, micro_batch=BATCH)
    return MemoryEstimator(modules[0], modules[1:])._run(plan, ())[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "train_text", "adapters", "checkpointing"),
    [("toy", True, None, True), ("sdxl", False, None, True), ("sd15", False, LORA, True), ("sd2", False, DORA, False)],
)
def test_bytes_on_meta_tensors_are_those_of_real_tensors(
    kind: str, train_text: bool, adapters: LoraSettings | None, checkpointing: bool
) -> None:
    """Peak and what is kept, to the byte, with trained text encoders, adapters and checkpointing."""
    modules = trained_modules(kind, train_text=train_text, adapters=adapters)
    latent = (8 if kind == "toy" else 4, 8, 8)
    estimated = estimated_pass(modules, replace(PLAN, latent=latent, gradient_checkpointing=checkpointing))
    if checkpointing:
        modules[0].unet.enable_gradient_checkpointing()
        for encoder in modules[1:]:
            encoder.activation_checkpointing_enable()
    assert estimated == real_pass(modules, latent, nullcontext())
    assert sum(estimated.peak.values()) > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_autocast_on_meta_tensors_is_that_of_a_cpu(checkpointing: bool) -> None:
    """In bfloat16 all but the statistics of group norms is the same, which the meta device keeps in the inputs' format."""
    modules = trained_modules("sd15", dtype=torch.bfloat16)
    estimated = estimated_pass(modules, replace(PLAN, dtype="bfloat16", gradient_checkpointing=checkpointing))
    if checkpointing:
        modules[0].unet.enable_gradient_checkpointing()
    measured = real_pass(modules, PLAN.latent, torch.autocast("cpu", torch.bfloat16))
    assert estimated.saved["weight_copies"] == measured.saved["weight_copies"] > 0
    assert sum(estimated.peak.values()) == pytest.approx(sum(measured.peak.values()), rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_kept_on_a_cpu_does_not_grow_with_the_square_of_many_tokens(dtype: str) -> None:
    """Four times the cells keep four times the bytes, on meta tensors and on real ones, with attention over 1,296 of them."""
    modules, kept = trained_modules("sd15", dtype=getattr(torch, dtype)), []
    for side in (18, 36):
        assert side**4 > MAX_UNFUSED_SCORES
        latent = (4, side, side)
        estimated = estimated_pass(modules, replace(PLAN, latent=latent, dtype=dtype))
        measured = real_pass(modules, latent, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"))
        assert sum(estimated.peak.values()) == pytest.approx(sum(measured.peak.values()), rel=5e-3)
        kept.append((estimated.saved["activations"], measured.saved["activations"]))
    for small, large in zip(*kept, strict=True):
        assert large < 4.05 * small


class AllocationLog(AllocationCounter):
    """Counts as well how often a tensor of a format and shape was allocated."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.allocations: Counter[Any] = Counter()

    def _count(self, tensor: Tensor, func: Any, args: Any) -> None:
        before = self.total
        super()._count(tensor, func, args)
        if self.total > before:
            self.allocations[tensor.dtype, tensor.shape] += 1


class FlashAttention(TorchFunctionMode):
    """Calls the operator that PyTorch chooses on a GPU, which it cannot ask without a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*(x.to(torch.bfloat16) for x in args[:3]))[0]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def cuda_autocast() -> Iterator[None]:
    """PyTorch's own autocast of CUDA; `torch.autocast` would ask for a GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    yield
    torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    torch.set_autocast_enabled("cuda", False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_autocast_on_meta_tensors_is_that_of_a_gpu(kind: str, cuda_autocast: None) -> None:
    """PyTorch's autocast decides on fake tensors, which claim to be on a GPU: every operator allocates the same."""
    net = build_editor_unet(build_base_model(kind)).train().requires_grad_(True)
    meta, autocast = meta_copy(net, channels_last=True), MetaAutocast(torch.bfloat16, "cuda")
    with AllocationLog(meta.parameters(), "meta") as counted, autocast:
        loss = editor_loss(meta, (), PLAN.latent, N_TOKENS, BATCH, channels_last=True)
    with FakeTensorMode() as fake_mode:
        memo: dict[int, Any] = {id(p): nn.Parameter(on_gpu(p)) for p in net.parameters()}
        fake = copy.deepcopy(net, memo)
    with fake_mode, AllocationLog(fake.parameters(), "cuda") as expected, FlashAttention():
        fake_loss = editor_loss(fake, (), PLAN.latent, N_TOKENS, BATCH, channels_last=True)
    assert counted.allocations == expected.allocations
    assert counted.alive == expected.alive
    assert counted.peak == expected.peak
    assert counted.alive["weight_copies"] > 0
    del loss, fake_loss  # they keep the activations until here


def on_gpu(tensor: Tensor) -> Tensor:
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return torch.empty(tensor.shape, device="cuda", memory_format=layout)


@pytest.mark.slow
def test_what_is_kept_is_what_autograd_saves() -> None:
    """An independent count: distinct storages that autograd asks its hooks to keep, parameters left out."""
    modules = trained_modules("sd15")
    weights = {p.untyped_storage().data_ptr() for p in modules.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = editor_loss(modules[0], (), PLAN.latent, N_TOKENS, BATCH)
    n_bytes = sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in weights)
    counted = sum(estimated_pass(modules, PLAN).saved.values())
    assert loss.requires_grad
    assert counted == pytest.approx(n_bytes, rel=0.01)


@pytest.mark.slow
def test_parts_follow_from_the_number_of_parameters(estimator: MemoryEstimator) -> None:
    n = sum(p.numel() for p in build_editor_unet(build_base_model("sd15")).parameters())
    estimate = estimator.estimate(PLAN)
    assert (estimate.weights, estimate.optimizer, estimate.ema, estimate.host) == (4 * n, 8 * n, 4 * n, 0)
    assert estimate.total == sum(estimate.parts.values()) == estimate.certain
    assert estimator.estimate(replace(PLAN, passes=2)).gradients == 4 * n
    assert estimator.estimate(replace(PLAN, ema=False)).ema == 0
    on_gpu = estimator.estimate(replace(PLAN, device="cuda", ema_device="cpu", ema_dtype="bfloat16"))
    assert (on_gpu.ema, on_gpu.host) == (0, 2 * n)
    assert on_gpu.certain == on_gpu.total - on_gpu.workspace - on_gpu.context


@pytest.mark.slow
def test_optimizer_state_in_8_bits(estimator: MemoryEstimator) -> None:
    """2 bytes and the scales of blocks of 256 for large parameters, two float32 moments for those below 4096 elements."""
    sizes = [p.numel() for p in build_editor_unet(build_base_model("sd15")).parameters()]
    large, small = [n for n in sizes if n >= 4096], [n for n in sizes if n < 4096]
    expected = sum(2 * n + 8 * -(-n // 256) for n in large) + 8 * sum(small)
    assert large
    assert estimator.estimate(replace(PLAN, optimizer="adamw_8bit")).optimizer == expected


@pytest.mark.slow
def test_adapters_have_the_only_gradients(estimator: MemoryEstimator) -> None:
    modules = trained_modules("sd15", adapters=LORA)
    trained = sum(p.numel() for p in modules.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in modules.parameters() if not p.requires_grad)
    plan = replace(PLAN, device="cuda", dtype="bfloat16", lora=LORA)
    estimate = estimator.estimate(plan)
    assert (estimate.weights, estimate.optimizer, estimate.ema) == (4 * trained + 2 * frozen, 8 * trained, 4 * trained)
    prepared = MemoryEstimator(modules[0]).estimate(replace(plan, dtype="float32"))
    assert prepared.parts == estimator.estimate(replace(plan, dtype="float32")).parts, "adapters that are there are not added"


@pytest.mark.slow
def test_sharding_divides_the_state_and_ddp_does_not(estimator: MemoryEstimator) -> None:
    alone, ddp = estimator.estimate(PLAN), estimator.estimate(replace(PLAN, world_size=4))
    fsdp = estimator.estimate(replace(PLAN, world_size=4, fsdp=True))
    assert (ddp.weights, ddp.optimizer) == (alone.weights, alone.optimizer)
    assert ddp.gradients == alone.weights, "buckets of gradients exist before the pass"
    assert (fsdp.weights, fsdp.optimizer, fsdp.ema) == (alone.weights // 4, alone.optimizer // 4, alone.ema // 4)
    assert fsdp.temporaries > ddp.temporaries, "weights are gathered"


@pytest.mark.slow
def test_activations_grow_by_the_sample_and_checkpointing_keeps_less(estimator: MemoryEstimator) -> None:
    kept = [estimator.estimate(replace(PLAN, micro_batch=n)).saved for n in (1, 2, 3)]
    assert kept[2] - kept[1] == kept[1] - kept[0] > 0
    checkpointed = estimator.estimate(replace(PLAN, micro_batch=3, gradient_checkpointing=True))
    assert checkpointed.saved < kept[2] / 3
    assert checkpointed.total < estimator.estimate(replace(PLAN, micro_batch=3)).total


@pytest.mark.slow
def test_the_network_is_not_changed() -> None:
    net = build_editor_unet(build_base_model("sd15")).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    MemoryEstimator(net).estimate(replace(PLAN, lora=LORA, gradient_checkpointing=True))
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert not net.training
    assert not net.unet.is_gradient_checkpointing
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.slow
def test_savings_are_those_of_the_changed_plan(estimator: MemoryEstimator) -> None:
    plan = replace(PLAN, micro_batch=4)
    savings = estimator.savings(plan)
    cheaper = estimator.estimate(replace(plan, gradient_checkpointing=True))
    assert savings["gradient_checkpointing: true"] == estimator.estimate(plan).total - cheaper.total
    assert list(savings.values()) == sorted(savings.values(), reverse=True)
    assert min(savings.values()) > 0
    on_gpu = replace(plan, device="cuda", world_size=4)
    assert "ema_device: cpu" in estimator.savings(on_gpu).keys() - estimator.savings(replace(on_gpu, fsdp=True)).keys()


@pytest.mark.slow
def test_the_vae_and_text_encoders_count_where_they_are() -> None:
    """On a CPU always, in each process; on a GPU during previews, when there are no activations."""
    base_model = build_base_model("sd15")
    net, frozen = build_editor_unet(base_model), [base_model.vae, base_model.text_encoder]
    n_bytes = sum(tensor.nbytes for module in frozen for tensor in (*module.parameters(), *module.buffers()))
    with_frozen, without = MemoryEstimator(net, (), frozen), MemoryEstimator(net)
    on_cpu = with_frozen.estimate(PLAN).weights - without.estimate(PLAN).weights
    assert on_cpu == with_frozen.estimate(PLAN).certain - without.estimate(PLAN).certain == n_bytes > 0
    on_gpu = replace(PLAN, device="cuda")
    estimates = [with_frozen.estimate(replace(on_gpu, previews=previews)) for previews in (False, True)]
    assert [estimate.total for estimate in estimates] == [without.estimate(on_gpu).total] * 2, "smaller than the activations"
    assert estimates[0].host == n_bytes
    large = MemoryEstimator(net, (), 500 * frozen)
    preview = large.estimate(replace(on_gpu, previews=True))
    assert (preview.temporaries, preview.activations, preview.gradients) == (500 * n_bytes, 0, 0)
    assert preview.certain == preview.weights + preview.optimizer + preview.ema + 500 * n_bytes
    assert large.estimate(on_gpu).total == without.estimate(on_gpu).total
