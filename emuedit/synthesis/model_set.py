"""The models that generate and score pairs; each is loaded once, on first use."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from emuedit import config
from emuedit.data.dependencies import content_key
from emuedit.models import clip, depth, detector, dino, model_sources, segmenter, text_to_image
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import Runtime
from emuedit.synthesis.pair_scores import Scorers

MODELS = ("base_model", "detector", "segmenter", "clip", "dino", "depth")


class ModelSet:
    """A world's models on a device. On a CPU weights stay float32 and the U-Net runs under autocast; elsewhere they are cast."""

    def __init__(self, world: config.World, root: Path, runtime: Runtime) -> None:
        self.world, self.root, self.runtime = world, root, runtime
        on_cpu = runtime.torch_device.type == "cpu"
        self._options: dict[str, Any] = {
            "device": runtime.device,
            "dtype": torch.float32 if on_cpu else runtime.torch_dtype,
        }

    @cached_property
    def base_model(self) -> TextToImageModel:
        """The model that generates the images."""
        base_model = text_to_image.load(self._path("base_model"), **self._options)
        base_model.unet.to(memory_format=torch.channels_last)  # a third faster convolutions in inference, on CPUs and GPUs
        base_model.vae.to(memory_format=torch.channels_last)
        return base_model

    @cached_property
    def segmenter(self) -> segmenter.Segmenter:
        """The model that converts boxes to masks."""
        return segmenter.load(self._path("segmenter"), **self._options)

    @cached_property
    def detector(self) -> detector.Detector:
        """The model that detects objects by name."""
        return detector.load(self._path("detector"), device=self.runtime.device)

    @cached_property
    def scorers(self) -> Scorers:
        """The models that score pairs, in float32, so that thresholds do not depend on the device."""
        device = self.runtime.device
        return Scorers(
            clip.load(self._path("clip"), device=device),
            dino.load(self._path("dino"), device=device),
            depth.load(self._path("depth"), device=device),
            self.detector,
        )

    @cached_property
    def annotate(self) -> Any:
        """The function that produces targets of the vision tasks, see `config.World.annotators`.

        Annotators with device `auto` use this set's device, and those without a depth network use the world's. Their local model
        folders are relative to this set's root, since remote workers have another working folder.
        """
        annotate: Any = config.import_function(self.world.annotators, "annotate")
        if not dataclasses.is_dataclass(annotate):
            return annotate
        defaults = {"device": ("auto", self.runtime.device), "depth": (None, self._path("depth"))}
        filled = {name: value for name, (unset, value) in defaults.items() if getattr(annotate, name, value) == unset}
        names = [field.name for field in dataclasses.fields(annotate) if field.init and field.name != "device"]
        texts = {name: value for name in names if isinstance(value := getattr(annotate, name), str) and value}
        paths = {name: str(self.root / value) for name, value in texts.items() if (self.root / value).exists()}
        return dataclasses.replace(annotate, **paths | filled)  # type: ignore[type-var]

    @cached_property
    def revision(self) -> str:
        """Revision of the base model: a hash of its files, or the commit of a hub id."""
        name = self._path("base_model")
        if Path(name).exists():
            return content_key({}, name)
        name, commit = model_sources.split_revision(name)
        if commit:
            return commit
        path = model_sources.import_library("huggingface_hub").hf_hub_download(name, model_sources.BASE_MODEL.file)
        return Path(path).parent.name  # .../snapshots/<commit>/model_index.json

    def _path(self, name: str) -> str:
        return config.resolve_path(getattr(self.world, name), self.root)
