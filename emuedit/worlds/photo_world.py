"""The params of a photo world: a template filled in from captions, models and benchmark."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from emuedit.config import ParamsError
from emuedit.metrics.benchmark_folder import HELD_OUT, TABLE
from emuedit.models import model_sources
from emuedit.models.llm_loading import is_local
from emuedit.models.model_files import base_model_sizes
from emuedit.promotion.gate_settings import GateSettings
from emuedit.worlds import training_amount
from emuedit.worlds.caption_survey import MANY_ROWS, CaptionRules, count_captions

TEMPLATE = Path(__file__).with_name("photo_params.yaml")
_TRAINED = (
    "local", "remove", "add", "texture", "background", "global", "style", "color", "detect", "segment", "depth", "normal",
    "sketch",
)  # fmt: skip
"""All tasks except text, which suits few images, and those whose annotators need further networks (pose, segmap)."""
_FIRST_CAPTIONS, _MOST_EDITS = 500, 32
_FEWEST_EDITS: int = GateSettings.model_fields["min_edits"].default
_WITHOUT_BENCHMARK = ("local", "remove", "add", "background", "style")
_GET_SAM = "world.segmenter: curl -LO https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"
_COMMENTED, _COMMENT_COLUMN = re.compile(r"( *\w+:.*?) {2,}# (.*)"), 42
_LARGE_T5 = re.compile(r"-(x+l|3b|11b)/?(@|$)")
_ENDPOINT_CONCURRENCY = 8
_KEPT_SHARE = 0.3
"""Emu Edit kept three of ten candidates."""
_T5_LR, _ADAPTERS_LR = 1.0e-4, 5.0e-4
_OBJECT_PX, _WIDE_PX, _SIGMA_PX, _AT_PX = 30, 20, 8, 512
"""AnyEdit's mask dilation at 512 px; the toy world's blur, scaled to this size."""
_INDEX = model_sources.BASE_MODEL.file


@dataclass(frozen=True)
class Preset:
    """A training preset and its base model."""

    base_model: str
    size_px: int
    """Side in px of the base model's images."""
    resolution_px: int
    """Training resolution of the preset, in px."""
    rows_per_batch: int


PRESETS = {
    "sd15-512": Preset("stable-diffusion-v1-5/stable-diffusion-v1-5", 512, 512, 4),
    "sd15-256": Preset("stable-diffusion-v1-5/stable-diffusion-v1-5", 512, 256, 4),
    "sdxl-512": Preset("stabilityai/stable-diffusion-xl-base-1.0", 1024, 512, 2),
}
MODELS = {
    "detector": "IDEA-Research/grounding-dino-base",
    "segmenter": "sam_vit_b_01ec64.pth",
    "clip": "ViT-L-14/openai",
    "dino": "facebook/dinov2-base",
    "depth": "depth-anything/Depth-Anything-V2-Small-hf",
    "llm": "Qwen/Qwen2.5-7B-Instruct",
    "t5": "google/flan-t5-base",
}
"""Keys of `world` for the models other than the base model."""


@dataclass(frozen=True)
class PhotoWorld:
    """The choices of `emuedit init`."""

    name: str
    captions: str
    column: str
    """Caption column of a table or dataset."""
    preset: str
    models: Mapping[str, str]
    """`base_model` and the keys of MODELS -> names."""
    benchmark: str
    n_captions: int | None = None
    """Captions to use; None: at most 500."""

    def options(self) -> set[str]:
        """The `$` names in the template whose values are chosen; the others are computed."""
        chosen = {"name", "captions", "column", "preset", "benchmark", *self.models}
        return chosen | ({"n_captions"} if self.n_captions is not None else set())


def render(world: PhotoWorld, root: Path, tuned: Mapping[str, Any] | None = None) -> tuple[str, list[str]]:
    """(text of `params.yaml`, notes for the user). tuned: sections of an earlier `params.yaml`, of which `captions` and
    `validation` determine which captions are usable.

    Raises ParamsError, or what the captions or the benchmark raise if they cannot be read.
    """
    preset = PRESETS[world.preset]
    if world.n_captions is not None and world.n_captions < 1:
        raise ParamsError(f"want one caption or more as --n-captions, got {world.n_captions}")
    for value in (world.name, world.column, *world.models.values()):
        if "\n" in value or "\r" in value:
            raise ParamsError(f"want names without line breaks, got {value!r}")
    sizes = base_model_sizes(root / world.models["base_model"])
    size_px = sizes.picture_px if sizes else preset.size_px
    template = TEMPLATE.read_text(encoding="utf-8")
    rules = CaptionRules.read(yaml.safe_load(template), tuned or {})
    n_rows, n_usable, of_captions = count_captions(root, world.captions, world.column, world.n_captions, rules)
    tasks, n_edits, of_benchmark = _read_benchmark(root / world.benchmark, world.models["clip"])
    further = list(_further_notes(world, root, size_px))
    n_captions = min(max(1, n_usable), world.n_captions or _FIRST_CAPTIONS)
    training = asdict(training_amount.choose(world.preset, n_captions * len(_TRAINED) * _KEPT_SHARE))
    per_px = size_px / _AT_PX
    values: dict[str, Any] = dict(world.models) | {
        "name": world.name,
        "size": size_px,
        "captions": world.captions,
        "column": world.column,
        "benchmark": world.benchmark,
        "n_rows": max(n_rows, MANY_ROWS),
        "concurrency": 1 if is_local(world.models["llm"]) else _ENDPOINT_CONCURRENCY,
        "n_captions": n_captions,
        "tasks": list(_TRAINED),
        "rows_per_batch": preset.rows_per_batch,
        "object_px": round(_OBJECT_PX * per_px),
        "wide_px": round(_WIDE_PX * per_px),
        "sigma_px": round(_SIGMA_PX * per_px),
        "router_lr": _ADAPTERS_LR if _LARGE_T5.search(world.models["t5"]) else _T5_LR,
        "preset": world.preset,
        "resolution": min(preset.resolution_px, size_px),
        "evaluated": tasks,
        "n_edits": n_edits,
    }
    texts = {key: value if key.endswith("_reason") else _yaml(value) for key, value in (values | training).items()}
    lines = [_fill(line, texts) for line in template.splitlines()]
    return "\n".join(lines) + "\n", [*of_captions, *of_benchmark, *further]


def _further_notes(world: PhotoWorld, root: Path, size_px: int) -> Iterator[str]:
    """Notes on the models."""
    base_model, preset = world.models["base_model"], PRESETS[world.preset]
    if not (root / base_model).exists() and base_model.partition("@")[0] != preset.base_model:
        yield f"pairs.recipes: masks are for images of {size_px} px; scale radius_px and sigma_px if {base_model} differs"
    index = _find_index(base_model, root)
    if index and ("XL" in json.loads(index.read_text(encoding="utf-8"))["_class_name"]) != ("xl" in world.preset):
        yield f"train.preset: {world.preset} does not fit the architecture of {base_model}; choose another --preset"
    if world.models["segmenter"] == MODELS["segmenter"] and not (root / MODELS["segmenter"]).exists():
        yield _GET_SAM


def _find_index(base_model: str, root: Path) -> Path | None:
    """`model_index.json` of a folder, or of a hub id if it was downloaded, as `model_access` does; else None."""
    if (root / base_model).exists():
        index = root / base_model / _INDEX
        return index if index.is_file() else None
    name, revision = model_sources.split_revision(base_model)
    if not model_sources.HUB_ID.fullmatch(base_model):
        return None
    cached = model_sources.import_library("huggingface_hub").try_to_load_from_cache(name, _INDEX, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _read_benchmark(folder: Path, clip: str) -> tuple[list[str], int, list[str]]:
    """(tasks with enough edits, edits per task, notes for the user)."""
    if folder.suffix == ".py":
        return list(_WITHOUT_BENCHMARK), _MOST_EDITS, [f"evaluation.tasks: list the tasks that {folder.name} has edits of"]
    if not (folder / TABLE).is_file():
        advice = f"write {folder / TABLE} (docs/own-data.md), then run this again with --overwrite"
        return list(_WITHOUT_BENCHMARK), _MOST_EDITS, [f"evaluation.tasks: there is no benchmark yet; {advice}"]
    from emuedit.metrics import benchmark_rows, photo_benchmark  # import torch

    all_rows = photo_benchmark.read_rows(folder)
    rows = [row for row in all_rows if benchmark_rows.can_be_judged(row, clip)]
    counts = Counter(row["task"] for row in rows if row["split"] == HELD_OUT)
    tasks = [task for task in _TRAINED if counts[task] >= _FEWEST_EDITS]
    if not tasks:
        raise ParamsError(
            f"want at least {_FEWEST_EDITS} held-out edits (promotion.min_edits) of one of {', '.join(_TRAINED)} in "
            f"{folder / TABLE} that can be judged, got {dict(counts)}"
        )
    notes = []
    if n_left_out := len(all_rows) - len(rows):
        notes.append(f"{folder / TABLE}: {n_left_out} edits cannot be judged; `uv run emuedit benchmark {folder}` lists them")
    if left_out := {task: n for task, n in counts.items() if task not in tasks}:
        reason = f"not in instructions.tasks, or fewer than {_FEWEST_EDITS} edits"
        notes.append(f"evaluation.tasks: without {left_out} of the benchmark ({reason})")
    fewest = min(tasks, key=lambda task: counts[task])
    if counts[fewest] < _MOST_EDITS:
        notes.append(f"evaluation.n_edits: {counts[fewest]}, the number of benchmark edits of {fewest}")
    return tasks, min(_MOST_EDITS, counts[fewest]), notes


def _fill(line: str, values: Mapping[str, str]) -> str:
    """Fill in a line of the template; its comment keeps its column if there is room."""
    parts = _COMMENTED.fullmatch(line)
    if not parts:
        return Template(line).substitute(values)
    return f"{Template(parts[1]).substitute(values):<{_COMMENT_COLUMN}} # {Template(parts[2]).substitute(values)}"


def _yaml(value: Any) -> str:
    """A value formatted for the position after its key."""
    return yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, allow_unicode=True).removesuffix("...\n").strip()
