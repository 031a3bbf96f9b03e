"""Stage `inversion`: learn one new task from a few examples: its embedding and an adapter.

In: `models/editor`, the world's benchmark. Out: `models/inversion/<task>.safetensors` (a task pack),
`summary.json`; only the summary if not enabled; `logs/inversion`.
"""

from pathlib import Path
from typing import Literal

from emuedit import config
from emuedit.data.dependencies import work_key
from emuedit.data.image_io import Pixels
from emuedit.data.publish import Summary, publish, publish_logs, read_summary, scratch_folder
from emuedit.editor import sampling, task_pack
from emuedit.editor.sampling import EditSampler
from emuedit.editor.settings import EditSettings
from emuedit.metrics import benchmark
from emuedit.metrics.benchmark import Benchmark
from emuedit.runtime import Device, Runtime
from emuedit.stages import batch_divisor, stage_main
from emuedit.tracking import Tracker
from emuedit.training.inversion_examples import encode_split, rows_by_image
from emuedit.training.learned_threshold import choose_change_threshold
from emuedit.training.task_inversion import InversionSettings, LearnedTask, invert, training_loss

EDITOR, OUT = "models/editor", "models/inversion"
HEADLINE = "tasks learned: {tasks}, from {examples} examples in {steps} steps"


class InversionError(ValueError):
    """Raised for a task without reference results in the benchmark, or without images that can be held out."""


class InversionParams(InversionSettings):
    """Params of the stage."""

    world: config.World
    """The world; only its `benchmark` is used."""
    enabled: bool = True
    """Whether to learn a task; false if the benchmark has no examples. Users can also add tasks with `emuedit learn`."""
    device: Device = "auto"
    """Device: auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the network's computations: auto, float32 or bfloat16; what is learned is float32."""
    settings: EditSettings = EditSettings()
    """Settings of the edits of the held-out examples, on which the task's change threshold is chosen."""


def run(params: InversionParams, root: Path) -> Summary:
    """Learn one task with the published editor, publish its pack to `models/inversion`; no pack if not `enabled`."""
    if not params.enabled:
        nothing = {"enabled": False}
        scratch = scratch_folder(root, "inversion", work_key("inversion", nothing, root))
        return publish(scratch, root / OUT, "inversion", nothing, {"tasks": 0})
    runtime = Runtime.choose(params.device, params.dtype)
    read_summary(root / EDITOR)  # an incompletely published editor has none
    of_training = training_loss(root / EDITOR)
    params = params.model_copy(update={name: of_training[name] for name in of_training.keys() - params.model_fields_set})
    named = {"benchmark": params.world.benchmark, "dtype": runtime.dtype}
    recorded = params.model_dump(mode="json", exclude={"world", "device"}) | named
    sampler = sampling.load(root / EDITOR, runtime)
    edits = benchmark.load(params.world.benchmark, runtime.device)(params.task, "train", 0, params.n_examples + params.n_held_out)
    n_passes = batch_divisor()
    if n_passes > 1:
        print(f"inversion: ran out of memory; retrying with {n_passes} passes per step", flush=True)
        sampler.max_pixels_per_batch //= n_passes
    results, split = _results(edits), hold_out_images(edits, params.n_held_out)
    examples, held_out = encode_split(sampler, edits.before, results, edits.instructions, split, params.flip, n_passes)
    scratch = scratch_folder(root, "inversion", work_key("inversion", recorded, root))
    with Tracker(scratch, "inversion", params.model_dump(mode="json")) as tracker:
        learned = invert(sampler, examples, held_out, params, tracker, n_passes)
    change_threshold = _choose_threshold(sampler, learned, edits, split[1], params)
    used = params.model_copy(update={"n_examples": len(split[0]), "n_held_out": len(split[1])})
    instructions = [edits.instructions[row] for row in split[0]]
    pack = learned.pack(sampler.fingerprint, used, instructions, {"params": recorded}, change_threshold)
    task_pack.save(pack, scratch / f"{params.task}.safetensors")
    counts = {"tasks": 1, "examples": used.n_examples, "steps": learned.steps}
    recorded = recorded | {"editor": sampler.fingerprint, "record": pack.record}  # not |=, since the record contains the params
    publish_logs(scratch, root, "inversion")
    return publish(scratch, root / OUT, "inversion", recorded, counts)


def hold_out_images(edits: Benchmark, n_held_out: int) -> tuple[list[int], list[int]]:
    """Rows to learn from and at most `n_held_out` rows to hold out; no image before an edit is in both.

    The last images whose edits fit are held out; of different images these are the last edits. Prints a line if fewer edits are
    held out. Raises InversionError if each image has more edits.
    """
    groups, chosen = rows_by_image(edits.before), set[int]()
    for group in reversed(groups):
        if len(chosen) + len(group) <= n_held_out:
            chosen.update(group)
    rows = range(len(edits.instructions))
    if not chosen:
        raise InversionError(
            f"want edits of {edits.task!r} to hold out, at most {n_held_out} with all edits of their images, got {len(rows)} "
            f"edits of {len(groups)} images with {min(map(len, groups))} or more each; raise inversion.n_held_out, or add other "
            "images"
        )
    learned = [row for row in rows if row not in chosen]
    if len(chosen) < n_held_out:
        print(
            f"inversion: edits held out: {len(chosen)}, to learn from: {len(learned)}, as edits of one image stay together",
            flush=True,
        )
    return learned, sorted(chosen)


def _results(edits: Benchmark) -> Pixels:
    if edits.exact is None:
        raise InversionError(
            f"want edits of {edits.task!r} with reference results to learn from, got none; let the benchmark return `exact`"
        )
    return edits.exact


def _choose_threshold(
    sampler: EditSampler, learned: LearnedTask, edits: Benchmark, held_out: list[int], params: InversionParams
) -> float | None:
    """The change threshold that is best for the held-out examples."""
    return choose_change_threshold(
        sampler,
        params.task,
        learned,
        before=edits.before[held_out],
        after=_results(edits)[held_out],
        instructions=[edits.instructions[row] for row in held_out],
        settings=params.settings,
    )


if __name__ == "__main__":
    stage_main("inversion")
