"""Hints for unknown names: the closest known name, or the new name of something renamed.

`RENAMED` lists params, command line options, commands and files that were renamed. Old names are not accepted; errors give the
new name.
"""

import difflib
import importlib.abc
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from typing import Any

RENAMED = {
    # params.yaml
    "world.painter": "world.base_model",
    "world.writer": "world.llm",
    "instructions.agents": "instructions.prompts",
    "instructions.constrain": "instructions.constrained_decoding",
    "pairs.guidance": "pairs.guidance_scale",
    "pairs.recipes.guidance": "pairs.recipes.guidance_scale",
    "pairs.spend": "pairs.strategy",
    "pairs.strategy.gates": "pairs.strategy.filters",
    "dataset.gates": "dataset.filters",
    "dataset.routing": "dataset.reassignment",
    "dataset.keep": "dataset.keep_per_instruction",
    "router.batch": "router.batch_size",
    "router.clip_norm": "router.max_grad_norm",
    "train.batch": "train.batch_size",
    "train.clip_norm": "train.max_grad_norm",
    "train.lr_new": "train.lr_mult_new",
    "train.lr_text": "train.lr_mult_text",
    "train.task_width": "train.task_embedding_dim",
    "train.balance": "train.task_balance",
    "train.weights": "train.loss_weights",
    "inversion.batch": "inversion.batch_size",
    "inversion.weights": "inversion.loss_weights",
    **{
        f"{section}.loss_weights.{old}": f"{section}.loss_weights.{new}"
        for section in ("train", "inversion")
        for old, new in {
            "late_times": "timestep_power",
            "rarity": "mask_balance",
            "kept": "background_weight",
            "change": "change_loss_weight",
            "change_rarity": "change_mask_balance",
        }.items()
    },
    "evaluation.steps": "evaluation.settings.steps",
    "evaluation.s_I": "evaluation.settings.image_guidance_scale",
    "evaluation.s_T": "evaluation.settings.guidance_scale",
    "evaluation.phi": "evaluation.settings.guidance_rescale",
    "evaluation.hold": "evaluation.settings.preserve",
    "evaluation.alpha": "evaluation.settings.change_threshold",
    "evaluation.seed": "evaluation.settings.seed",
    "evaluation.columns": "evaluation.sheet_columns",
    # command line
    "--text-guidance": "--guidance-scale",
    "--image-guidance": "--image-guidance-scale",
    "--rescale": "--guidance-rescale",
    "--hold": "--preserve",
    "--alpha": "--change-threshold",
    "--at-once": "--max-parallel",
    # arguments of the registered model
    "s_I": "image_guidance_scale",
    "s_T": "guidance_scale",
    "phi": "guidance_rescale",
    "hold": "preserve",
    "alpha": "change_threshold",
    # files named in params.yaml
    "emuedit/editor/non_instructions.yaml": "emuedit/predictor/non_instructions.yaml",
    "emuedit/toyworld/grammar.py": "toyworld/scenes/caption_grammar.py",
    "emuedit/toyworld/annotators.py": "toyworld/reading/toy_annotators.py",
    "emuedit/toyworld/benchmark.py": "toyworld/edits/toy_benchmark.py",
    "emuedit/toyworld/weights/painter": "toyworld/weights/base_model",
    **{f"emuedit/toyworld/weights/{model}": f"toyworld/weights/{model}" for model in
       ("detector", "segmenter", "clip", "dino", "depth", "t5")},
    "emuedit.toyworld.writer:toy_writer": "toyworld.edits.rule_llm:toy_llm",
    "emuedit/annotators/photos.py": "emuedit/annotators/photo_annotators.py",
    "emuedit/agents": "emuedit/prompts",
    "emuedit/agents/moderation.txt": "emuedit/prompts/moderation.txt",
    # commands: stages, run with `python -m`
    **{f"emuedit.{stage}": f"emuedit.stages.{stage}" for stage in
       ("captions", "instructions", "pairs", "dataset", "router", "train", "inversion", "evaluation")},
}  # fmt: skip


def closest_match(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the candidate most similar to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def new_name(name: str) -> str | None:
    """The new name of this param, option, file or command, if it was renamed."""
    return RENAMED.get(name)


class RenamedOptionError(ValueError):
    """Raised for a renamed command line option."""


def check_options(arguments: Iterable[str]) -> None:
    """Raise RenamedOptionError, which gives the new name, for a command line option of an earlier version."""
    for argument in arguments:
        option = argument.split("=", maxsplit=1)[0]
        if option.startswith("--") and (renamed := RENAMED.get(option)) is not None:
            raise RenamedOptionError(f"{option} is now {renamed}")


class RenamedCommands(importlib.abc.MetaPathFinder):
    """The last finder of the import system: turns `python -m emuedit.pairs` into an error with the command's new name."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """None for all other names, which are unknown."""
        del path, target
        if (renamed := RENAMED.get(name)) is not None:
            # The error names the parent: Python replaces an error that names the module by its own in
            # `from emuedit import pairs`, and prints a traceback for an error without a name in `python -m`.
            raise ModuleNotFoundError(f"{name} is now {renamed}", name=name.rpartition(".")[0])
        return None
