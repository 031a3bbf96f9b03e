"""Stage `validation`: check the kept pairs, and compare them with the champion's, before anything is trained on them.

In: `data/pairs` and what `data/dataset` mixed in (Pair), `data/dataset` (Verdict), the summary of `data/instructions`; with
`reference: champion` the profile of the champion, from the artifacts of its run.
Out: `reports/validation/`: `report.md`, `report.json` and `report.png` for people; `profile.json` and `embeddings.safetensors`,
with which later data are compared; `passed.json`; `summary.json`.

`train` has `passed.json` among its deps, so DVC trains only after a validation that passed. The file says that, and nothing else:
its bytes are the same whatever the bounds and figures are, so that moving a bound, or a warning, does not train again. After a
breach there is neither `passed.json` nor `summary.json`, only the report. A champion that changes does not make this stage out of
date: DVC does not see the registry.
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
from emuedit.data.publish import Summary, publish, read_summary, scratch_folder
from emuedit.data_checks import pair_profile, profile_maker, reference_profile, validation_report
from emuedit.data_checks.check_bounds import CHECKS, CheckBounds, CheckNames, CheckResult, judge
from emuedit.data_checks.check_figures import measure_checks
from emuedit.data_checks.pair_profile import PROFILE
from emuedit.data_checks.profile_maker import SampleSettings
from emuedit.data_checks.reference_profile import CHAMPION
from emuedit.data_checks.text_measures import TextSettings
from emuedit.data_checks.validation_report import ReportedData
from emuedit.models import clip
from emuedit.runtime import Runtime
from emuedit.stages import batch_divisor, stage_main

PAIRS, DATASET, INSTRUCTIONS, OUT = "data/pairs", "data/dataset", "data/instructions", "reports/validation"
PASSED = "passed.json"
HEADLINE = "{pass} checks pass, {warn} warn, {accepted} accepted, {fail} fail; see reports/validation/report.md"


class BreachError(ValueError):
    """Raised for data that breach a check and shall not be trained on."""


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
    """What the data are compared with: champion, the folder `reports/validation` of another run, or null: nothing."""
    on_breach: Literal["stop", "warn", "ask"] = "stop"
    """What a failed check does: stop the pipeline; warn, and go on; or ask on a terminal, and stop
    where there is none, as under `retrain`."""
    accept: CheckNames
    """Checks that may fail, by name: a breach that is known and meant."""
    bounds: CheckBounds
    """Check -> {warn: x, fail: y} in place of its default; names and defaults: emuedit/data_checks/check_bounds.py."""
    languages: tuple[str, ...] = ("en",)
    """Languages that texts may be in, as ISO 639-1 codes; empty: any."""
    min_language: float = Field(0.2, ge=0, le=1)
    """Least probability of being in one of them, of a pair's captions and instruction together."""
    instruction_words: WordRange = (2, 60)
    """Fewest and most words of an instruction."""
    caption_words: WordRange = (2, 77)
    """Fewest and most words of a caption. CLIP's text encoder reads 77 tokens."""
    min_side_px: int = Field(32, ge=8)
    """Shortest side of an image in pixels."""
    sample_pairs: int = Field(512, ge=2)
    """Kept pairs whose images are looked at."""
    sample_shards: int = Field(64, ge=1)
    """Shards that they may come from: all of a sampled shard's images are read."""
    device: str = "auto"
    """Where CLIP runs: auto, cpu, cuda or mps."""

    @property
    def texts(self) -> TextSettings:
        """What counts as an unusual text."""
        return TextSettings(self.instruction_words, self.caption_words, self.languages, self.min_language)

    @property
    def sample(self) -> SampleSettings:
        """Which images are looked at."""
        return SampleSettings(self.sample_pairs, self.sample_shards, self.min_side_px)


def run(params: ValidationParams, root: Path) -> Summary:
    """Measure, compare, report; publish to `reports/validation`, or raise BreachError with the names of the failed checks."""
    dataset = read_summary(root / DATASET)
    folders = [root / folder for folder in (PAIRS, *sorted(dataset.params.get("mix", ())))]
    clip_path = config.resolve_path(params.world.clip, root)
    judged = {"reference", "on_breach", "accept", "bounds"}  # they do not change what is measured
    measured_by = params.model_dump(mode="json", exclude={"world", "device", *judged}) | {"clip": params.world.clip}
    inputs = [folder / SUMMARY_FILE for folder in folders]
    scratch = scratch_folder(root, "validation", work_key("validation", measured_by, root, clip_path, *map(str, inputs)))
    if not _was_measured(scratch):
        scorer = clip.load(clip_path, Runtime.choose(params.device, "float32").device)
        name = content_key({}, clip_path) if Path(clip_path).exists() else clip_path
        measured = profile_maker.make(folders, root, DATASET, params.texts, params.sample, scorer, name, batch_divisor())
        pair_profile.write(scratch, *measured)
    profile, embeddings = pair_profile.read(scratch)
    reference = reference_profile.resolve(params.reference, root, OUT)
    results = judge(measure_checks(profile, embeddings, reference, _wanted_tasks(root, dataset)), params.bounds, params.accept)
    data = ReportedData(profile, embeddings, reference, dataset.counts)
    validation_report.write(scratch, data, results)
    if breaches := [result for result in results if result.is_breach]:
        explanation = _explain(breaches, params.accept)
        if not _goes_on(params.on_breach, explanation):
            _show(scratch, root / OUT)
            raise BreachError(explanation)
    (scratch / PASSED).write_text(json.dumps({"passed": True}) + "\n", encoding="utf-8")
    recorded = params.model_dump(mode="json", exclude={"world", "device"}) | {"clip": params.world.clip}
    return publish(scratch, root / OUT, "validation", recorded | {"compared_with": reference.name}, count(results))


def count(results: list[CheckResult]) -> dict[str, int]:
    """How many checks passed, warned, failed and were accepted."""
    return {name: sum(result.verdict == name for result in results) for name in ("pass", "warn", "accepted", "fail")}


def _was_measured(scratch: Path) -> bool:
    """Whether a run that stopped at a breach left its profile. Not if something was damaged, which may be repaired since."""
    return (scratch / PROFILE).exists() and not pair_profile.read(scratch)[0].texts["damaged"]


def _wanted_tasks(root: Path, dataset: Summary) -> set[str]:
    """Tasks that there are instructions or candidates of."""
    file = root / INSTRUCTIONS / SUMMARY_FILE  # absent where all pairs were imported
    instructions: Mapping[str, Any] = read_summary(file.parent).counts if file.exists() else {}
    written = {key.removeprefix("kept_") for key in instructions if key.startswith("kept_")}
    return written | {key.removesuffix(".pairs") for key in dataset.counts if key.endswith(".pairs")}


def _goes_on(on_breach: str, explanation: str) -> bool:
    """Whether the pipeline goes on in spite of breaches; asks a person, if it shall and there is a terminal."""
    if on_breach == "ask" and sys.stdin.isatty():
        print(explanation, file=sys.stderr, flush=True)
        return input("Train on these data all the same? [y/N] ").strip().lower() in ("y", "yes")
    if on_breach == "warn":
        print(f"validation: goes on, as validation.on_breach says; {explanation}", file=sys.stderr, flush=True)
    return on_breach == "warn"


def _explain(breaches: list[CheckResult], accept: Sequence[str]) -> str:
    """The failed checks and what to do about them."""
    lines = [f"  {result.name}: {validation_report.describe(result)}; {CHECKS[result.name].advice}" for result in breaches]
    names = ", ".join(result.name for result in breaches)
    every_name = ", ".join([*accept, *(result.name for result in breaches)])
    advice = f"To train on them all the same, set validation.accept: [{every_name}] in params.yaml. All figures: {OUT}/report.md"
    return "\n".join([f"the kept pairs fail {len(breaches)} of {len(CHECKS)} checks: {names}", *lines, advice])


def _show(scratch: Path, out: Path) -> None:
    """Put the report where it is looked for, without the files that make it a published validation."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in validation_report.FILES:
        shutil.copy2(scratch / name, out / name)


if __name__ == "__main__":
    stage_main("validation")
