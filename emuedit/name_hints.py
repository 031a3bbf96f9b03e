"""Hints for unknown names: the closest known name, or the new name of something renamed.

`RENAMED` lists params, command line options, modules and files that were renamed. Old names are not accepted; errors give the
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
    # modules that are run with `python -m`
    **{f"emuedit.{stage}": f"emuedit.stages.{stage}" for stage in
       ("captions", "instructions", "pairs", "dataset", "router", "train", "inversion", "evaluation")},
    # modules that are imported
    "emuedit.agents": "emuedit.prompts",
    "emuedit.annotators.classes": "emuedit.annotators.semantic_segmentation",
    "emuedit.annotators.maps": "emuedit.annotators.derived_maps",
    "emuedit.annotators.people": "emuedit.annotators.pose_estimation",
    "emuedit.annotators.photos": "emuedit.annotators.photo_annotators",
    "emuedit.benchmark": "emuedit.metrics.benchmark",
    "emuedit.bundle": "emuedit.editing.api",
    "emuedit.card": "emuedit.data.data_card",
    "emuedit.core.alignment": "emuedit.core.token_alignment",
    "emuedit.core.attention": "emuedit.core.attention_mixing",
    "emuedit.core.softmask": "emuedit.core.soft_mask",
    "emuedit.core.threshold": "emuedit.core.change_threshold",
    "emuedit.corpus": "emuedit.data.caption_sources",
    "emuedit.crew": "emuedit.training.distributed",
    "emuedit.editor.batches": "emuedit.training.latent_cache",
    "emuedit.editor.edit": "emuedit.editor.sampling",
    "emuedit.editor.loss": "emuedit.training.loss",
    "emuedit.editor.net": "emuedit.editor.unet",
    "emuedit.editor.pack": "emuedit.editor.task_pack",
    "emuedit.editor.pupil": "emuedit.training.trainable_editor",
    "emuedit.editor.router": "emuedit.predictor.task_predictor",
    "emuedit.editor.routing": "emuedit.predictor.task_reassignment",
    "emuedit.editor.table": "emuedit.editor.task_embedding",
    "emuedit.editor.turns": "emuedit.editing.multi_turn",
    **{f"emuedit.editor.{module}": f"emuedit.predictor.{module}" for module in
       ("calibration", "classifier_adapters", "cross_fitting", "new_tasks", "ngram_classifier", "non_instructions",
        "task_predictor", "task_reassignment", "wording_noise")},
    **{f"emuedit.editor.{module}": f"emuedit.editing.{module}" for module in
       ("any_size", "edit_commands", "edit_turn", "editor_inputs", "multi_turn", "session", "task_commands")},
    "emuedit.editor.package": "emuedit.editing.api",
    "emuedit.training.start": "emuedit.training.starting_point",
    **{f"emuedit.training.{module}": f"emuedit.editing.{module}" for module in ("learn_command", "learn_task")},
    "emuedit.gates": "emuedit.data.filters",
    "emuedit.language": "emuedit.data.language",
    "emuedit.layouts": "emuedit.data.formats",
    "emuedit.metrics.baselines": "emuedit.metrics.systems",
    "emuedit.models.attention": "emuedit.models.attention_processor",
    "emuedit.models.constraint": "emuedit.models.constrained_decoding",
    "emuedit.models.endpoint": "emuedit.models.openai_llm",
    "emuedit.models.latents": "emuedit.models.vae_latents",
    "emuedit.models.likeness": "emuedit.models.edit_similarity",
    "emuedit.models.painter": "emuedit.models.text_to_image",
    "emuedit.models.pixels": "emuedit.models.image_tensors",
    "emuedit.models.sam": "emuedit.models.sam_builder",
    "emuedit.models.sources": "emuedit.models.model_sources",
    "emuedit.models.writer": "emuedit.models.llm_loading",
    "emuedit.params": "emuedit.config",
    "emuedit.photo": "emuedit.data.image_io",
    "emuedit.proposal": "emuedit.data.filter_search",
    "emuedit.records": "emuedit.data.records",
    "emuedit.rivals": "emuedit.synthesis.methods",
    "emuedit.sheet": "emuedit.data.contact_sheet",
    "emuedit.synthesis.bandit": "emuedit.synthesis.strategy",
    "emuedit.synthesis.batches": "emuedit.synthesis.batching",
    "emuedit.synthesis.control": "emuedit.synthesis.attention_control",
    "emuedit.synthesis.difference": "emuedit.synthesis.methods.diffedit",
    "emuedit.synthesis.making": "emuedit.synthesis.shard_maker",
    "emuedit.synthesis.scores": "emuedit.synthesis.pair_scores",
    "emuedit.synthesis.studio": "emuedit.synthesis.model_set",
    "emuedit.synthesis.trajectory": "emuedit.synthesis.sampler",
    "emuedit.toyworld": "toyworld",
    "emuedit.workers": "emuedit.synthesis.worker_pool",
}  # fmt: skip


def closest_match(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the candidate most similar to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def new_name(name: str) -> str | None:
    """The new name of this param, option, file or module, if it was renamed."""
    return RENAMED.get(name)


class RenamedOptionError(ValueError):
    """Raised for a renamed command line option."""


def check_options(arguments: Iterable[str]) -> None:
    """Raise RenamedOptionError, which gives the new name, for a command line option of an earlier version."""
    for argument in arguments:
        option = argument.split("=", maxsplit=1)[0]
        if option.startswith("--") and (renamed := RENAMED.get(option)) is not None:
            raise RenamedOptionError(f"{option} is now {renamed}")


class RenamedModules(importlib.abc.MetaPathFinder):
    """The first finder of the import system: turns `python -m emuedit.pairs` into an error with the module's new name.

    It must be first, because the folder of a renamed package may still exist and contain only compiled files.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """None for all other names, so that their import proceeds as usual."""
        del path, target
        if (renamed := RENAMED.get(name)) is not None:
            # The error names the parent: Python replaces an error that names the module by its own in
            # `from emuedit import pairs`, and prints a traceback for an error without a name in `python -m`.
            raise ModuleNotFoundError(f"{name} is now {renamed}", name=name.rpartition(".")[0])
        return None
