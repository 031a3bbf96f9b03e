"""Stage `validation`: check the kept pairs, and compare them with the champion's, before training.

In: `data/pairs` and the folders mixed in by `data/dataset` (Pair), `data/dataset` (Verdict), the summary of `data/instructions`;
with `reference: champion` the profile of the champion, from the artifacts of its run.
Out: `reports/validation/`: `report.md`, `report.json` and `report.png` for people; `profile.json` and `embeddings.safetensors`
for later comparisons; `passed.json`; `summary.json`. `train` has `passed.json` among its deps, so DVC trains only after a passed
validation. Its content is constant, so that a changed bound or a warning does not trigger a training. After a breach there is
only the report, without `passed.json` and `summary.json`. A change of the champion does not make this stage out of date, since
DVC does not see the registry.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from emuedit import config
from emuedit.data.dependencies import SUMMARY_FILE, content_key, work_key
from emuedit.data.publish import Summary, cache_folder, empty_folder, publish, read_summary, scratch_folder
from emuedit.data_checks import pair_profile, profile_maker, reference_profile, validation_report
from emuedit.data_checks.check_bounds import CHECKS, CheckBounds, CheckNames, CheckResult, judge
from emuedit.data_checks.check_figures import measure_checks
from emuedit.data_checks.pair_profile import PROFILE, ProfileError
from emuedit.data_checks.profile_maker import SampleSettings
from emuedit.data_checks.reference_profile import CHAMPION
from emuedit.data_checks.text_measures import TextSettings
from emuedit.data_checks.validation_report import ReportedData
from emuedit.models import clip
from emuedit.runtime import Device, Runtime
from emuedit.stages import batch_divisor, stage_main

PAIRS, DATASET, INSTRUCTIONS, OUT = "data/pairs", "data/dataset", "data/instructions", "reports/validation"
PASSED = "passed.json"
HEADLINE = "{pass} checks pass, {warn} warn, {accepted} accepted, {fail} fail; see reports/validation/report.md"


class BreachError(ValueError):
    """Raised for data that breach a check and must not be used for training."""


def _check_range(words: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= words[0] <= words[1]:
        raise ValueError(f"want [fewest, most] words with 0 <= fewest <= most, got {list(words)}")
    return words


WordRange = Annotated[tuple[int, int], AfterValidator(_check_range)]


class ValidationParams(config.Params):
    """Params of the stage."""

    world: config.World
    """The world; only its `clip` is used."""
    reference: str | None = CHAMPION
    """Reference of the comparison: champion, a folder `reports/validation` of another run, or null: none."""
    on_breach: Literal["stop", "warn", "ask"] = "stop"
    """Action on a failed check: stop the pipeline; warn, and continue; or ask on a terminal (stop if there is none, as under
    `retrain`)."""
    accept: CheckNames
    """Names of checks that may fail, for intended breaches."""
    bounds: CheckBounds
    """Check -> {warn: x, fail: y}, replaces its default; names and defaults: emuedit/data_checks/check_bounds.py."""
    languages: tuple[str, ...] = ("en",)
    """Languages that texts may be in, as ISO 639-1 codes; empty: any."""
    min_language: float = Field(0.2, ge=0, le=1)
    """Minimum probability that a pair's captions and instruction are in one of them."""
    instruction_words: WordRange = (2, 60)
    """Minimum and maximum words of an instruction."""
    caption_words: WordRange = (2, 77)
    """Minimum and maximum words of a caption. CLIP's text encoder is limited to 77 tokens."""
    min_side_px: int = Field(32, ge=8)
    """Shortest allowed side of an image, in px."""
    sample_pairs: int = Field(512, ge=2)
    """Number of kept pairs whose images are checked."""
    sample_shards: int = Field(64, ge=1)
    """Maximum number of shards to sample from: all images of a sampled shard are read."""
    device: Device = "auto"
    """Device of CLIP: auto, cpu, cuda or mps."""

    @property
    def texts(self) -> TextSettings:
        """Limits beyond which a text is unusual."""
        return TextSettings(self.instruction_words, self.caption_words, self.languages, self.min_language)

    @property
    def sample(self) -> SampleSettings:
        """The sample of images to check."""
        return SampleSettings(self.sample_pairs, self.sample_shards, self.min_side_px)


def run(params: ValidationParams, root: Path) -> Summary:
    """Measure, compare, report; publish to `reports/validation`, or raise BreachError with the names of the failed checks."""
    dataset = read_summary(root / DATASET)
    folders = [root / folder for folder in (PAIRS, *sorted(dataset.params.get("mix", ())))]
    clip_path = config.resolve_path(params.world.clip, root)
    judged = {"reference", "on_breach", "accept", "bounds"}  # they do not affect the measurements
    measured_by = params.model_dump(mode="json", exclude={"world", "device", *judged}) | {"clip": params.world.clip}
    inputs = [folder / SUMMARY_FILE for folder in folders]
    key = work_key("validation", measured_by, root, clip_path, *map(str, inputs))
    scratch, stored = scratch_folder(root, "validation", key), cache_folder(root / "scratch" / "validation-profile", key)
    if not _was_measured(stored):
        scorer = clip.load(clip_path, Runtime.choose(params.device, "float32").device)
        name = content_key({}, clip_path) if Path(clip_path).exists() else clip_path
        measured = profile_maker.make(folders, root, DATASET, params.texts, params.sample, scorer, name, batch_divisor())
        pair_profile.write(stored, *measured)
    shutil.copytree(stored, scratch, dirs_exist_ok=True)
    profile, embeddings = pair_profile.read(stored)
    reference = reference_profile.resolve(params.reference, root, OUT)
    results = judge(measure_checks(profile, embeddings, reference, _wanted_tasks(root, dataset)), params.bounds, params.accept)
    data = ReportedData(profile, embeddings, reference, dataset.counts)
    validation_report.write(scratch, data, results)
    if breaches := [result for result in results if result.is_breach]:
        explanation = _explain(breaches, params.accept)
        if not _continues(params.on_breach, explanation):
            _show(scratch, root / OUT)
            raise BreachError(explanation)
    (scratch / PASSED).write_text(json.dumps({"passed": True}) + "\n", encoding="utf-8")
    recorded = params.model_dump(mode="json", exclude={"world", "device"}) | {"clip": params.world.clip}
    return publish(scratch, root / OUT, "validation", recorded | {"compared_with": reference.name}, count(results))


def count(results: list[CheckResult]) -> dict[str, int]:
    """Number of checks per verdict."""
    return {name: sum(result.verdict == name for result in results) for name in ("pass", "warn", "accepted", "fail")}


def _was_measured(stored: Path) -> bool:
    """Whether an earlier run left a readable profile of these pairs, without damaged files (may be repaired now)."""
    if not (stored / PROFILE).exists():
        return False
    try:
        profile, _ = pair_profile.read(stored)
    except ProfileError:
        return False
    return not profile.texts["damaged"]


def _wanted_tasks(root: Path, dataset: Summary) -> set[str]:
    """Tasks with instructions or candidates."""
    file = root / INSTRUCTIONS / SUMMARY_FILE  # missing if all pairs were imported
    instructions: Mapping[str, Any] = read_summary(file.parent).counts if file.exists() else {}
    written = {key.removeprefix("kept_") for key in instructions if key.startswith("kept_")}
    return written | {key.removesuffix(".pairs") for key in dataset.counts if key.endswith(".pairs")}


def _continues(on_breach: str, explanation: str) -> bool:
    """Whether to continue despite breaches; asks on a terminal if configured."""
    if on_breach == "ask" and sys.stdin.isatty():
        print(explanation, file=sys.stderr, flush=True)
        return input("Train on these data anyway? [y/N] ").strip().lower() in ("y", "yes")
    if on_breach == "warn":
        print(f"validation: continuing (validation.on_breach: {on_breach}); {explanation}", file=sys.stderr, flush=True)
    return on_breach == "warn"


def _explain(breaches: list[CheckResult], accept: Sequence[str]) -> str:
    """The failed checks and what to do about them."""
    lines = [f"  {result.name}: {validation_report.describe(result)}; {CHECKS[result.name].advice}" for result in breaches]
    names = ", ".join(result.name for result in breaches)
    every_name = ", ".join([*accept, *(result.name for result in breaches)])
    advice = f"To train on them anyway, set validation.accept: [{every_name}] in params.yaml. All results: {OUT}/report.md"
    return "\n".join([f"the kept pairs fail {len(breaches)} of {len(CHECKS)} checks: {names}", *lines, advice])


def _show(scratch: Path, out: Path) -> None:
    """Copy the report to its folder, without the files of a published validation."""
    empty_folder(out)
    for name in validation_report.FILES:
        shutil.copy2(scratch / name, out / name)


if __name__ == "__main__":
    stage_main("validation")
