"""The picture of `bench/pairs.py`: right pairs per second of processor, and per instruction, of every method."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

NAMES = {
    "ours": "soft masks",
    "ours_without_sharing": "without sharing the first picture",
    "ours_hard_mask": "hard masks",
    "ours_no_mask": "no mask",
    "ours_menu_all": "menu, all painted",
    "ours_menu_bandit_2": "menu, bandit, two each",
    "ours_menu_bandit_1": "menu, bandit, one each",
    "p2p": "Prompt-to-Prompt",
    "p2p_local_blend": "Prompt-to-Prompt, LocalBlend",
    "instruct_pix2pix_1_candidates_keep_1": "InstructPix2Pix, one",
    "instruct_pix2pix": "InstructPix2Pix, best of four",
}
UNITS = {
    "right_per_cpu_s": "right pairs per CPU second",
    "yield": "right pairs per instruction",
    "right_share": "right of the kept",
}


def draw(found: dict[str, Any], path: Path) -> None:
    """Three bars a method, ours above; `found` is what `bench/results/pairs.json` holds."""
    table = found["methods"]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, len(UNITS), sharey=True)
    colours = ["tab:green" if name.startswith("ours") else "tab:grey" for name in NAMES]
    for ax, (unit, said) in zip(axes, UNITS.items(), strict=True):
        bars = ax.barh(list(NAMES.values()), [table[name][unit] for name in NAMES], color=colours)
        ax.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        ax.set_title(said, fontsize=10)
        ax.margins(x=0.15)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
