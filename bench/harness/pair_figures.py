"""The images of `bench/pairs.py`: a bar chart of all methods, and a contact sheet of the first edits of some methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from emuedit.data import contact_sheet
from emuedit.data.records import Instruction
from emuedit.models.image_tensors import to_uint8
from harness.pair_scoring import ScoredCandidate

METHOD_LABELS = {
    "soft_mask": "soft masks",
    "soft_mask_without_sharing": "without sharing the source",
    "hard_mask": "hard masks",
    "no_mask": "no mask",
    "recipe_grid_all": "six recipes, all",
    "recipe_grid_bandit_2": "six recipes, bandit, two each",
    "recipe_grid_bandit_1": "six recipes, bandit, one each",
    "prompt_to_prompt": "Prompt-to-Prompt",
    "prompt_to_prompt_local_blend": "Prompt-to-Prompt, LocalBlend",
    "instruct_pix2pix_1_candidates_keep_1": "InstructPix2Pix, one",
    "instruct_pix2pix": "InstructPix2Pix, best of four",
}
"""Method -> its label in the chart."""
SOFT_MASK_METHODS = ("soft_mask", "hard_mask", "no_mask", "recipe_grid")
"""Prefixes of the methods that are green in the chart."""
FIGURE_TITLES = {
    "right_per_cpu_s": "correct pairs per CPU second",
    "yield": "correct pairs per instruction",
    "right_share": "share of correct pairs among the kept",
}
SHEET_METHODS = ("soft_mask", "instruct_pix2pix", "prompt_to_prompt", "prompt_to_prompt_local_blend")
SHEET_INSTRUCTIONS = 2
"""Instructions of each task on the sheet."""


def draw_chart(methods: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Three bars for each method; `methods` is the table of that name in `bench/results/pairs.json`."""
    from matplotlib.figure import Figure  # takes seconds to import

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(FIGURE_TITLES), sharey=True)
    colors = ["tab:green" if name.startswith(SOFT_MASK_METHODS) else "tab:grey" for name in METHOD_LABELS]
    for axes, (key, title) in zip(all_axes, FIGURE_TITLES.items(), strict=True):
        bars = axes.barh(list(METHOD_LABELS.values()), [methods[name][key] for name in METHOD_LABELS], color=colors)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def draw_sheet(
    candidates: Mapping[str, Sequence[ScoredCandidate]], instructions: Sequence[Instruction], tasks: Sequence[str], path: Path
) -> None:
    """The first instructions of every task for some methods: the best candidate, with a green frame if it is correct."""
    chosen: list[Instruction] = []
    for task in tasks:
        chosen += [instruction for instruction in instructions if instruction.task == task][:SHEET_INSTRUCTIONS]
    sheets = []
    for name in SHEET_METHODS:
        blank = torch.zeros_like(candidates[name][0].pair.source)
        best = [best_candidate(candidates[name], instruction) for instruction in chosen]
        sources = torch.stack([blank if candidate is None else candidate.pair.source for candidate in best])
        targets = torch.stack([blank if candidate is None else candidate.pair.target for candidate in best])
        marks = [candidate is not None and candidate.right for candidate in best]
        rows = [("source", to_uint8(sources)), ("target", to_uint8(targets))]
        texts = [instruction.text for instruction in chosen]
        sheets.append(contact_sheet.picture_grid(rows, texts, 3, name.replace("_", " "), ("target", marks)))
    contact_sheet.tile_sheets(sheets).save(path, optimize=True)


def best_candidate(candidates: Sequence[ScoredCandidate], instruction: Instruction) -> ScoredCandidate | None:
    """The candidate of an instruction that passes and has the highest CLIP direction; None without candidates."""
    of_instruction = [candidate for candidate in candidates if candidate.pair.instruction.id == instruction.id]
    return max(of_instruction, key=lambda candidate: (candidate.passed, candidate.direction), default=None)
