"""The models that make and judge pairs, each loaded once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from emuedit import config
from emuedit.data.publish import fingerprint
from emuedit.models import clip, depth, detector, dino, model_sources, segmenter, text_to_image
from emuedit.runtime import Runtime
from emuedit.synthesis.methods.prompt_to_prompt import PromptToPrompt
from emuedit.synthesis.pair_scores import Scorers
from emuedit.synthesis.sampler import Sampler

MODELS = ("base_model", "detector", "segmenter", "clip", "dino", "depth")


class ModelSet:
    """A world's models on a device. On a CPU weights stay float32 and the U-Net runs under autocast; elsewhere they are cast."""

    def __init__(self, world: config.World, root: Path, runtime: Runtime, steps: int) -> None:
        self.world, self.root, self.runtime, self.steps = world, root, runtime, steps
        cast = runtime.torch_device.type != "cpu"
        self._how: dict[str, Any] = {
            "device": runtime.device,
            "dtype": runtime.torch_dtype if cast else torch.float32,
        }

    @cached_property
    def sampler(self) -> Sampler:
        """The base_model and how it samples."""
        return Sampler(text_to_image.load(self._at("base_model"), **self._how), self.steps, self.runtime.torch_dtype)

    @cached_property
    def by_words(self) -> PromptToPrompt:
        """The same base_model under Prompt-to-Prompt."""
        return PromptToPrompt(self.sampler.base_model, self.steps, self.runtime.torch_dtype)

    @cached_property
    def segmenter(self) -> segmenter.Segmenter:
        """The segmenter."""
        return segmenter.load(self._at("segmenter"), **self._how)

    @cached_property
    def detector(self) -> detector.Detector:
        """The detector."""
        return detector.load(self._at("detector"), device=self.runtime.device)

    @cached_property
    def judges(self) -> Scorers:
        """Those that score, in float32: thresholds should not depend on the device."""
        device = self.runtime.device
        return Scorers(
            clip.load(self._at("clip"), device=device),
            dino.load(self._at("dino"), device=device),
            depth.load(self._at("depth"), device=device),
            self.detector,
        )

    @cached_property
    def annotate(self) -> Any:
        """The world's annotators: see `config.World.annotators`."""
        return config.import_function(self.world.annotators, "annotate")

    @cached_property
    def revision(self) -> str:
        """What the base_model is: a hash of its files, or the commit of a hub id."""
        name = self._at("base_model")
        if Path(name).exists():
            return fingerprint({}, name)
        path = model_sources.library("huggingface_hub").hf_hub_download(name, model_sources.BASE_MODEL.file)
        return Path(path).parent.name  # .../snapshots/<commit>/model_index.json

    def _at(self, name: str) -> str:
        return config.resolve_path(getattr(self.world, name), self.root)


def files(world: config.World, root: Path) -> Iterator[Path]:
    """Models that lie on this machine, and the annotators with what stands beside them: they decide the result."""
    for name in MODELS:
        path = Path(config.resolve_path(getattr(world, name), root))
        if path.exists():
            yield path
    yield from sorted((root / world.annotators).parent.rglob("*.py"))
