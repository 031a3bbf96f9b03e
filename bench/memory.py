"""How much memory does training need, with Stable Diffusion 1.5 and XL, and is the estimate accurate?

`uv run python bench/memory.py [--quick]` writes `bench/results/memory.json`; its last line is the same JSON.

`table` is estimated for one GPU, bfloat16 autocast, AdamW and EMA in float32: GiB for one sample per pass, and for each further
sample. `on_cpu` compares the passes of a narrow U-Net with the allocations seen by PyTorch's profiler; it needs no GPU.
`on_gpu`, if there is one, compares whole training steps of the real sizes, with random weights, with PyTorch's peak of allocated
memory. `ratio` is the estimate divided by the measured peak. `context_gib` is the process's memory outside PyTorch's allocator.
"""

import gc
import importlib.util
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from harness import command, real_unets
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from emuedit.editor.unet import EditorUNet
from emuedit.training import lora
from emuedit.training.lora import LoraSettings
from emuedit.training.memory import flops
from emuedit.training.memory.memory_estimator import GIB, MemoryEstimator, MemoryPlan
from emuedit.training.memory.meta_step import editor_loss

NAMES = {"sd15": "SD1.5", "sdxl": "SDXL"}
LORA = LoraSettings(rank=16)
N_TOKENS = 77
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, checkpointing": {"gradient_checkpointing": True},
    "LoRA": {"lora": LORA},
    "LoRA, checkpointing": {"lora": LORA, "gradient_checkpointing": True},
}
GPU_STEPS = 3


def plan_for(size_px: int, micro_batch: int, variant: str) -> MemoryPlan:
    """A plan for images of size_px x size_px."""
    side = size_px // real_unets.FACTOR
    return MemoryPlan(latent=(4, side, side), n_tokens=N_TOKENS, micro_batch=micro_batch, **VARIANTS[variant])


def estimate_table(sizes_px: tuple[int, ...]) -> dict[str, Any]:
    """GiB by model, variant and size: for one sample, for each further one; and the seconds of an estimate."""
    table: dict[str, Any] = {}
    for name in NAMES:
        estimator = MemoryEstimator(real_unets.build_editor(name))
        for size_px, variant in tqdm(list(itertools.product(sizes_px, VARIANTS)), desc=f"memory: {name}", unit="plan"):
            start = time.perf_counter()
            single = estimator.estimate(plan_for(size_px, 1, variant))
            seconds = time.perf_counter() - start
            pair = estimator.estimate(plan_for(size_px, 2, variant))
            table.setdefault(name, {}).setdefault(variant, {})[str(size_px)] = {
                "total_gib": round(single.total / GIB, 2),
                "per_further_sample_gib": round((pair.saved - single.saved) / GIB, 3),
                "parts_gib": {part: round(n / GIB, 2) for part, n in single.parts.items()},
                "seconds": round(seconds, 1),
            }
    return table


def to_markdown(table: dict[str, Any], sizes_px: tuple[int, ...]) -> str:
    """The table for the documentation: GiB for one sample + GiB for each further one."""
    lines = [f"| GiB | {' | '.join(f'{size} px' for size in sizes_px)} |", "|---|" + "---|" * len(sizes_px)]
    for name, variants in table.items():
        for variant, by_size in variants.items():
            cells = [by_size[str(size)] for size in sizes_px]
            texts = (f"{cell['total_gib']:.1f} + {cell['per_further_sample_gib']:.2f}" for cell in cells)
            lines.append(f"| {NAMES[name]}, {variant} | {' | '.join(texts)} |")
    return "\n".join(lines)


def measure_on_cpu() -> dict[str, Any]:
    """Passes of a U-Net with Stable Diffusion 1.5's architecture, a tenth as wide, in float32: estimate and profiler."""
    torch.set_num_threads(1)
    narrow = {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 64}
    net = real_unets.build_editor("sd15", "cpu", **narrow).train().requires_grad_(True)
    rows: dict[str, Any] = {}
    for (size_px, n), variant in itertools.product(((128, 4), (512, 1)), ("full", "full, checkpointing")):
        plan = replace(plan_for(size_px, n, variant), device="cpu", dtype="float32")
        estimate = MemoryEstimator(net).estimate(plan)
        estimated = estimate.activations + estimate.gradients + estimate.temporaries
        net.unet.disable_gradient_checkpointing()
        if plan.gradient_checkpointing:
            net.unet.enable_gradient_checkpointing()
        run_passes(net, plan).backward()  # warm up
        net.zero_grad(set_to_none=True)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run_passes(net, plan).backward()
        net.zero_grad(set_to_none=True)
        rows[f"{size_px} px, {n} samples, {variant}"] = compare(estimated, peak_of_profile(profiler))
    return rows


def run_passes(net: EditorUNet, plan: MemoryPlan) -> Tensor:
    """The forward pass of a step; returns the loss."""
    return editor_loss(net, (), plan.latent, plan.n_tokens, plan.micro_batch, channels_last=plan.device == "cuda")


def peak_of_profile(profiler: profile) -> int:
    """Peak of the bytes allocated while the profiler ran."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(changes))


def compare(estimated: int, measured: int) -> dict[str, float]:
    """Both values in GiB, and their ratio."""
    return {
        "estimated_gib": round(estimated / GIB, 3),
        "measured_gib": round(measured / GIB, 3),
        "ratio": round(estimated / measured, 3),
    }


def measure_on_gpu(cases: list[tuple[str, int, int]]) -> dict[str, Any]:
    """Training steps of (model, size in px, samples) in every variant."""
    device, rows = torch.device("cuda"), {}
    variants = VARIANTS if importlib.util.find_spec("peft") else {k: v for k, v in VARIANTS.items() if "lora" not in v}
    forward: dict[tuple[str, int], int] = {}
    for (name, size_px, n), variant in tqdm(list(itertools.product(cases, variants)), desc="memory: GPU", unit="case"):
        plan = plan_for(size_px, n, variant)
        net = real_unets.build_editor(name, "cuda")
        estimate = MemoryEstimator(net).estimate(plan)
        if (name, size_px) not in forward:
            forward[name, size_px] = flops.forward_flops(net, plan.latent, plan.n_tokens)
        step = prepare_step(net, plan)
        del net
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step()  # warm-up: kernels are selected
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(GPU_STEPS):
            step()
        torch.cuda.synchronize()
        speed = GPU_STEPS * n / (time.perf_counter() - start)
        per_sample = flops.training_flops(forward[name, size_px], lora=plan.lora is not None)
        rows[f"{NAMES[name]}, {size_px} px, {n} samples, {variant}"] = {
            **compare(estimate.total - estimate.context, torch.cuda.max_memory_allocated()),
            "certain_gib": round(estimate.certain / GIB, 3),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 3),
            "samples_per_second": round(speed, 2),
            "mfu": round(flops.mfu(per_sample, speed, device, torch.bfloat16), 3),
        }
        del step
        gc.collect()
        torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    context = round((total - free - torch.cuda.memory_reserved()) / GIB, 2)
    return {"context_gib": context, "peak_tflops": round(flops.peak_flops(device, torch.bfloat16) / 1e12, 1), "steps": rows}


def prepare_step(net: EditorUNet, plan: MemoryPlan) -> Callable[[], None]:
    """A training step like in the stage `train`: autocast, clipped gradients, fused AdamW, EMA."""
    net.float().train().requires_grad_(True)
    if plan.lora is not None:
        lora.add_adapters(net.unet, plan.lora, torch.bfloat16)
    net.to(memory_format=torch.channels_last)
    if plan.gradient_checkpointing:
        net.unet.enable_gradient_checkpointing()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    averages = [parameter.detach().clone() for parameter in trained]

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = run_passes(net, plan)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(averages, [parameter.detach() for parameter in trained], 1e-3)

    return step


def main() -> None:
    """Estimate, measure, write, print."""
    args = command.argument_parser(__doc__, quick="the table at 512 px only; on a GPU no SDXL").parse_args()
    sizes_px = (512,) if args.quick else (256, 512, 1024)
    figures: dict[str, Any] = {"on_cpu": measure_on_cpu()}
    for variant, row in figures["on_cpu"].items():
        print(f"on the CPU, {variant}: {row}", file=sys.stderr)
    if torch.cuda.is_available():
        cases = [("sd15", 256, 4), ("sd15", 512, 4), *([] if args.quick else [("sdxl", 512, 1)])]
        figures["on_gpu"] = measure_on_gpu(cases)
        for case, row in figures["on_gpu"]["steps"].items():
            print(f"{case}: {row}", file=sys.stderr)
    figures["table"] = estimate_table(sizes_px)
    print(to_markdown(figures["table"], sizes_px))
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
