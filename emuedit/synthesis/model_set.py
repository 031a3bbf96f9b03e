"""The models that make and judge pairs, each loaded once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from emuedit import config as house
from emuedit.data.publish import fingerprint
from emuedit.models import base_model as painter
from emuedit.models import clip, depth, detector, dino, segmenter
from emuedit.models import model_sources as sources
from emuedit.runtime import Runtime
from emuedit.synthesis.methods.prompt_to_prompt import PromptToPrompt
from emuedit.synthesis.pair_scores import Judges
from emuedit.synthesis.sampler import Sampler

MODELS = ("painter", "detector", "segmenter", "clip", "dino", "depth")


class Studio:
    """A world's models on a device. On a CPU weights stay float32 and the U-Net runs under autocast; elsewhere they are cast."""

    def __init__(self, world: house.World, root: Path, runtime: Runtime, steps: int) -> None:
        self.world, self.root, self.runtime, self.steps = world, root, runtime, steps
        cast = runtime.torch_device.type != "cpu"
        self._how: dict[str, Any] = {
            "device": runtime.device,
            "dtype": runtime.torch_dtype if cast else torch.float32,
        }

    @cached_property
    def sampler(self) -> Sampler:
        """The painter and how it samples."""
        return Sampler(painter.load(self._at("painter"), **self._how), self.steps, self.runtime.torch_dtype)

    @cached_property
    def by_words(self) -> PromptToPrompt:
        """The same painter under Prompt-to-Prompt."""
        return PromptToPrompt(self.sampler.painter, self.steps, self.runtime.torch_dtype)

    @cached_property
    def segmenter(self) -> segmenter.Segmenter:
        """The segmenter."""
        return segmenter.load(self._at("segmenter"), **self._how)

    @cached_property
    def detector(self) -> detector.Detector:
        """The detector."""
        return detector.load(self._at("detector"), device=self.runtime.device)

    @cached_property
    def judges(self) -> Judges:
        """Those that score, in float32: thresholds should not depend on the device."""
        device = self.runtime.device
        return Judges(
            clip.load(self._at("clip"), device=device),
            dino.load(self._at("dino"), device=device),
            depth.load(self._at("depth"), device=device),
            self.detector,
        )

    @cached_property
    def annotate(self) -> Any:
        """The world's annotators: see `house.World.annotators`."""
        return house.imported(self.world.annotators, "annotate")

    @cached_property
    def revision(self) -> str:
        """What the painter is: a hash of its files, or the commit of a hub id."""
        name = self._at("painter")
        if Path(name).exists():
            return fingerprint({}, name)
        path = sources.library("huggingface_hub").hf_hub_download(name, sources.PAINTER.file)
        return Path(path).parent.name  # .../snapshots/<commit>/model_index.json

    def _at(self, name: str) -> str:
        return house.locate(getattr(self.world, name), self.root)


def files(world: house.World, root: Path) -> Iterator[Path]:
    """Models that lie on this machine, and the annotators with what stands beside them: they decide the result."""
    for name in MODELS:
        path = Path(house.locate(getattr(world, name), root))
        if path.exists():
            yield path
    yield from sorted((root / world.annotators).parent.rglob("*.py"))
