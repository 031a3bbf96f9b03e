"""Estimate the memory of a training on each device before it starts.

Weights, gradients, optimizer state and EMA follow from the number of parameters. Activations are counted by running the step on
meta tensors (`meta_step`, `activation_memory`). The parts are given at peak memory: during the passes, in the optimizer's step,
or during a preview. Fragmentation of the allocator's memory, and the activations and the judge of a preview, are not included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from emuedit.editor.unet import EditorUNet
from emuedit.models import model_sources
from emuedit.models.attention_processor import use_unfused_attention_on_cpu
from emuedit.training import lora
from emuedit.training.lora import LoraSettings
from emuedit.training.memory import activation_memory
from emuedit.training.memory.activation_memory import (
    ACTIVATIONS,
    GRADIENTS,
    TEMPORARIES,
    WEIGHT_COPIES,
    PassMemory,
)
from emuedit.training.memory.memory_plan import GIB, MemoryEstimate, MemoryPlan
from emuedit.training.memory.meta_step import MetaAutocast, editor_loss, meta_copy
from emuedit.training.optim.optimizers import OptimizerName

CUDA_CONTEXT = GIB // 2
"""CUDA context and PyTorch's kernel code, per GPU process, outside PyTorch's allocator. Assumed."""
NCCL_BUFFERS = GIB * 2 // 5
"""Communication buffers of a GPU process that trains with others. Assumed, not measured."""
CUDA_WORKSPACE = GIB // 8
"""Workspaces of kernels: cuBLAS (32 MiB on Hopper) and convolutions. Assumed."""
FSDP_UNITS = ("BasicTransformerBlock", "ResnetBlock2D")
"""The FSDP units of `infra/accelerate/fsdp.yaml`; weights outside of them stay gathered during both passes."""


class MemoryEstimator:
    """Memory estimates for a network under several plans. The network may be on any device; it is not changed.

    `text_encoders`: the trained ones. `frozen`: the VAE and the other text encoders. They stay in CPU memory in every process;
    previews move them to the GPU.
    """

    def __init__(self, net: EditorUNet, text_encoders: Sequence[nn.Module] = (), frozen: Iterable[nn.Module] = ()) -> None:
        self._modules = meta_copy(nn.ModuleList([net, *text_encoders]))
        self._frozen = sum(_n_bytes(module) for module in frozen)
        self._variants: dict[Any, nn.ModuleList] = {}  # plan -> modules as trained
        self._passes: dict[Any, PassMemory] = {}

    def estimate(self, plan: MemoryPlan) -> MemoryEstimate:
        """Estimate a plan; takes 1 to 2 s for Stable Diffusion 1.5, two to five times as long for XL."""
        keeps_gradients = plan.passes > 1 or plan.world_size > 1  # before the pass starts
        uncounted = ((GRADIENTS,) if keeps_gradients else ()) + ((WEIGHT_COPIES,) if plan.fsdp else ())
        modules, passes = self._run(plan, uncounted)
        trained = [parameter.numel() for parameter in modules.parameters() if parameter.requires_grad]
        shards = plan.world_size if plan.fsdp else 1
        gradients = 4 * sum(trained) // shards
        ema = sum(trained) * (2 if plan.ema_dtype == "bfloat16" else 4) // shards if plan.ema else 0
        ema_on_device = ema if plan.ema_device == "same" or plan.device == "cpu" else 0
        optimizer, paged = _optimizer_bytes(trained, plan.optimizer)
        state = {
            "weights": _n_bytes(modules) // shards + (self._frozen if plan.device == "cpu" else 0),
            "optimizer": optimizer // shards,
            "ema": ema_on_device,
            "workspace": CUDA_WORKSPACE if plan.device == "cuda" else 0,
            "context": _context(plan),
        }
        in_passes = {**_NOTHING, **passes.peak}
        if keeps_gradients:
            in_passes[GRADIENTS] = gradients
        rounds_ema = ema_on_device > 0 and plan.ema_dtype == "bfloat16"
        in_update = {**_NOTHING, GRADIENTS: gradients, TEMPORARIES: 8 * max(trained) if rounds_ema else 0}
        in_preview = {
            **_NOTHING,
            GRADIENTS: gradients if plan.world_size > 1 and not plan.fsdp else 0,  # DDP's buckets, which are never freed
            TEMPORARIES: self._frozen if plan.previews and plan.device == "cuda" else 0,
        }
        phases = [in_update, in_preview, *([] if plan.compile else [in_passes])]
        counted = max(sum(parts.values()) for parts in phases)
        if plan.fsdp:
            in_passes[TEMPORARIES] += _gathered_bytes(modules, plan.dtype)
        largest = max(in_passes, in_update, in_preview, key=lambda parts: sum(parts.values()))
        return MemoryEstimate(
            plan,
            **state,
            **largest,
            saved=sum(passes.saved.values()),
            certain=state["weights"] + state["optimizer"] + state["ema"] + counted,
            host=(ema - ema_on_device) + paged // shards + (self._frozen if plan.device == "cuda" else 0),
        )

    def savings(self, plan: MemoryPlan) -> dict[str, int]:
        """Bytes on each device that each single change of the plan would save, largest first, without changes that save nothing.
        Changes are written as settings of `train`."""
        total = self.estimate(plan).total
        changes = {
            f"accumulation_steps: {plan.micro_batch * plan.passes * plan.world_size} (one sample per pass)": replace(
                plan, micro_batch=1, passes=plan.micro_batch * plan.passes
            ),
            "gradient_checkpointing: true": replace(plan, gradient_checkpointing=True),
            "lora: {rank: 16}": replace(plan, lora=plan.lora or LoraSettings(rank=16)),
            "ema_dtype: bfloat16": replace(plan, ema_dtype="bfloat16"),
        }
        if not plan.fsdp:
            changes["ema_device: cpu"] = replace(plan, ema_device="cpu")
        if plan.device == "cuda" and plan.optimizer == "adamw":
            changes["optimizer: adamw_8bit"] = replace(plan, optimizer="adamw_8bit")
        if plan.device == "cuda" and plan.dtype == "float32":
            changes["dtype: bfloat16"] = replace(plan, dtype="bfloat16")
        saved = {change: total - self.estimate(cheaper).total for change, cheaper in changes.items() if cheaper != plan}
        return dict(sorted(((change, n) for change, n in saved.items() if n > 0), key=lambda item: -item[1]))

    def _run(self, plan: MemoryPlan, uncounted: tuple[str, ...]) -> tuple[nn.ModuleList, PassMemory]:
        """(modules as trained, on the meta device; memory of one pass)."""
        modules = self._trained(plan)
        key = modules, plan.micro_batch, plan.latent, plan.n_tokens, plan.dtype, plan.gradient_checkpointing, uncounted
        if key not in self._passes:
            autocast = MetaAutocast(getattr(torch, plan.dtype), plan.device)
            net: Any = modules[0]
            text_encoders = list(modules)[1:]
            flags: Any = [module for module in modules.modules() if hasattr(module, "gradient_checkpointing")]
            for module in flags:  # diffusers and transformers use the same names
                module.gradient_checkpointing = plan.gradient_checkpointing
                module._gradient_checkpointing_func = autocast.checkpoint
            channels_last = plan.device == "cuda"
            with autocast:
                self._passes[key] = activation_memory.measure_pass(
                    lambda: editor_loss(net, text_encoders, plan.latent, plan.n_tokens, plan.micro_batch, channels_last),
                    modules.parameters(),
                    uncounted=uncounted,
                    after_forward=autocast.end_forward,
                )
        return modules, self._passes[key]

    def _trained(self, plan: MemoryPlan) -> nn.ModuleList:
        """Like `TrainableEditor.prepare`, on meta tensors."""
        frozen_dtype = getattr(torch, plan.dtype) if plan.lora and plan.device == "cuda" else torch.float32
        key = plan.device, plan.lora, frozen_dtype, plan.dtype == "float32"
        if key in self._variants:
            return self._variants[key]
        modules = self._variants[key] = meta_copy(self._modules, channels_last=plan.device == "cuda")
        net: Any = modules[0]
        encoders: list[Any] = list(modules)[1:]
        unet = net.unet
        if not any(".lora_" in name for name, _ in unet.named_parameters()):  # else it is already prepared
            modules.float().train().requires_grad_(True)
            if plan.lora is not None:
                lora.add_adapters(unet, plan.lora, frozen_dtype)
        unet.set_attn_processor(model_sources.import_library("diffusers.models.attention_processor").AttnProcessor2_0())
        for encoder in encoders:
            encoder.set_attn_implementation("sdpa")
        if plan.device == "cpu":
            use_unfused_attention_on_cpu(unet, encoders, getattr(torch, plan.dtype))
        return modules


_NOTHING = dict.fromkeys((ACTIVATIONS, WEIGHT_COPIES, GRADIENTS, TEMPORARIES), 0)


def _n_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _context(plan: MemoryPlan) -> int:
    if plan.device != "cuda":
        return 0
    return CUDA_CONTEXT + (NCCL_BUFFERS if plan.world_size > 1 else 0)


def _optimizer_bytes(trained: Sequence[int], optimizer: OptimizerName) -> tuple[int, int]:
    """(bytes on the device, bytes in paged memory) of the optimizer state of parameters with these numbers of elements.

    AdamW has two float32 moments. bitsandbytes stores them in 8 bits with a float32 scale per 256 elements, for parameters of at
    least 4096 elements; with paging, those of at least 100,000 are in memory that moves to the CPU when the GPU is full
    (`bitsandbytes/optim/optimizer.py`). Paged memory is counted as CPU memory; its pages move to the GPU in every step.
    """
    if optimizer == "adamw":
        return 8 * sum(trained), 0
    state = {n: 8 * n if n < 4096 else 2 * n + 2 * 4 * -(-n // 256) for n in set(trained)}
    paged = sum(state[n] for n in trained if n >= 100_000) if optimizer == "paged_adamw_8bit" else 0
    return sum(state[n] for n in trained) - paged, paged


def _gathered_bytes(modules: nn.ModuleList, dtype: str) -> int:
    """Bytes of the weights that FSDP2 gathers at a time: all outside its units, the current unit and the next one."""
    units = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in modules.named_modules()
        if type(module).__name__ in FSDP_UNITS
    }
    outside = sum(parameter.numel() for parameter in modules.parameters()) - sum(units.values())
    return (outside + 2 * max(units.values(), default=0)) * getattr(torch, dtype).itemsize
