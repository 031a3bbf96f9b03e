"""Station `evaluation`: the editor on edits whose results are known, beside an editor that does nothing.

In: `models/editor`, `models/router`, `models/inversion`, the world's benchmark and judges.
Out: `reports/evaluation/`: `metrics.json`, `metrics.csv`, `contact_sheet.png`, `shard-<system>-<task>.parquet` of EvalRecord,
`summary.json`.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from emuedit import config
from emuedit.core import change_threshold
from emuedit.data import contact_sheet as sheet
from emuedit.data.png import decode_png, encode_png
from emuedit.data.publish import Summary, fingerprint, publish, scratch_folder
from emuedit.data.records import EvalRecord
from emuedit.data.shards import read_shard, write_shard
from emuedit.editor import sampling, task_predictor
from emuedit.metrics import benchmark
from emuedit.metrics.benchmark import Benchmark, Pictures
from emuedit.models import clip, dino, edit_similarity, image_tensors
from emuedit.runtime import Runtime, seed_for
from emuedit.tasks import HELD_OUT, task

OUT = "reports/evaluation"
METRICS = {"clip_dir": "clip_direction", "clip_im": "clip_image", "clip_out": "clip_target", "l1": "l1", "dino": "dino"}
"""Names of Emu Edit's table -> names of ours. Pictures are compared with the input, not with the right answer."""

System = Callable[[Benchmark, list[int]], tuple[Pictures, list[str]]]
"""Edits and their seeds -> outputs uint8 [N, H, W, 3] and the task each was told."""


class EvaluationParams(config.Params):
    """Knobs of the station."""

    world: config.World
    """The world: its benchmark, CLIP and DINO."""
    systems: tuple[str, ...] = Field(min_length=1)
    """Who is compared: `identity` does nothing, `emuedit` is the editor with the router's task, `told` with the true task."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks to measure; those of `overall` are the trained ones among them."""
    split: str
    """Part of the benchmark, which training never saw."""
    n_edits: int = Field(ge=1)
    """Edits of each task."""
    steps: int = Field(ge=1)
    """Denoising steps of an edit."""
    s_I: float = Field(ge=0)
    """Guidance by the picture."""
    s_T: float = Field(ge=0)
    """Guidance by the instruction."""
    phi: float = Field(ge=0, le=1)
    """How far guidance is pulled back to the spread of what it guides; 0: not at all."""
    hold: float = Field(ge=0, le=1)
    """How much the picture is held where the editor sees nothing to change; 0: not at all."""
    alpha: float = Field(ge=0)
    """Pixels that changed less than this are the input's, as between turns; 0 keeps the output as it is."""
    dtype: str
    """Number format of the editor: auto, float32, bfloat16 or float16."""
    seed: int
    """Which noise the edits start from."""
    columns: int = Field(ge=1)
    """Edits of each task on the contact sheet: the first ones, not the best."""


class Systems:
    """Every system by its name, made when it is first asked for."""

    def __init__(self, params: EvaluationParams, root: Path) -> None:
        self.params, self.root = params, root
        runtime = Runtime.choose(dtype=params.dtype)
        self.device, self.dtype = runtime.device, runtime.torch_dtype
        self._editor: sampling.Editor | None = None
        self._router: task_predictor.TaskPredictor | None = None

    def __getitem__(self, name: str) -> System:
        known: dict[str, System] = {"identity": self.identity, "emuedit": self.emuedit, "told": self.told}
        if name not in known:
            raise config.ParamsError(f"want systems out of {', '.join(known)}; got {name!r}")
        return known[name]

    def identity(self, edits: Benchmark, seeds: list[int]) -> tuple[Pictures, list[str]]:
        """Does nothing, and is right about everything that must not change."""
        return edits.before, [edits.task] * len(seeds)

    def emuedit(self, edits: Benchmark, seeds: list[int]) -> tuple[Pictures, list[str]]:
        """The editor, told the task by the router; a task it learned by inversion is told, for the router does not know it."""
        if edits.task in self.editor.inverted:
            return self.told(edits, seeds)
        return self._edit(edits, [guess.task for guess in self.router.predict(edits.instructions)], seeds)

    def told(self, edits: Benchmark, seeds: list[int]) -> tuple[Pictures, list[str]]:
        """The editor, told the true task."""
        return self._edit(edits, [edits.task] * len(seeds), seeds)

    @property
    def editor(self) -> sampling.Editor:
        """The editor under test, with what inversion taught it."""
        if self._editor is None:
            self._editor = sampling.load(str(self.root / "models/editor"), self.device, self.dtype)
            for pack in sorted((self.root / "models/inversion").glob("*.safetensors")):
                self._editor.add_pack(pack)
        return self._editor

    @property
    def router(self) -> task_predictor.TaskPredictor:
        """Who tells the editor the task."""
        if self._router is None:
            self._router = task_predictor.load(str(self.root / "models/router"), self.device)
        return self._router

    def _edit(self, edits: Benchmark, tasks: list[str], seeds: list[int]) -> tuple[Pictures, list[str]]:
        before = image_tensors.from_uint8(edits.before).to(self.device)
        knobs = self.params
        after = self.editor.edit(
            before, edits.instructions, tasks, seeds,
            steps=knobs.steps, s_I=knobs.s_I, s_T=knobs.s_T, phi=knobs.phi, hold=knobs.hold,
        )  # fmt: skip
        if knobs.alpha:
            after = change_threshold.unchanged_kept(before, after.to(before.device), knobs.alpha)
        return image_tensors.to_uint8(after), tasks


def answers(
    name: str, system: System, edits: Benchmark, judges: tuple[clip.ClipScorer, dino.DinoScorer], seed: int
) -> list[EvalRecord]:
    """The heart: one system's outputs for one task, judged and measured."""
    seeds = [seed_for("evaluation", edits.task, i, seed) for i in range(len(edits.instructions))]
    outputs, told = system(edits, seeds)
    verdict = edits.judge(outputs)
    before, after = image_tensors.from_uint8(edits.before), image_tensors.from_uint8(outputs)
    found = edit_similarity.measure(*judges, before, after, edits.input_captions, edits.output_captions)
    return [
        EvalRecord(
            system=name,
            task=edits.task,
            instruction=edits.instructions[i],
            source_caption=edits.input_captions[i],
            target_caption=edits.output_captions[i],
            given_task=told[i],
            seed=seeds[i],
            source=encode_png(edits.before[i]),
            output=encode_png(outputs[i]),
            exact=encode_png(edits.exact[i]),
            success=bool(verdict.success[i]),
            reason=verdict.reason[i],
            scores={ours: found[theirs][i] for ours, theirs in METRICS.items()},
        )
        for i in range(len(seeds))
    ]


def run(params: EvaluationParams, root: Path) -> Summary:
    """Evaluate system by system and task by task, skip what an earlier run left in scratch, publish to `reports/evaluation`."""
    for name in params.tasks:
        task(name)  # an unknown one is an error now, not after minutes
    named = params.world.model_dump(include={"benchmark", "clip", "dino"})
    knobs = params.model_dump(mode="json", exclude={"world"}) | named
    models = [root / "models" / name for name in ("editor", "router", "inversion")]
    weights = [Path(config.resolve_path(one, root)) for one in (params.world.clip, params.world.dino)]
    scratch = scratch_folder(root, "evaluation", fingerprint(knobs, *models, *(one for one in weights if one.exists()), __file__))
    source = benchmark.load(params.world.benchmark)
    systems = Systems(params, root)
    judges = None
    found: list[EvalRecord] = []
    todo = [(system, name) for system in params.systems for name in params.tasks]
    with tqdm(total=len(todo) * params.n_edits, unit="edit", desc="evaluation") as bar:
        for system, name in todo:
            path = scratch / f"shard-{system}-{name}.parquet"
            if not path.exists():
                judges = judges or (
                    clip.load(config.resolve_path(params.world.clip, root), systems.device),
                    dino.load(config.resolve_path(params.world.dino, root), systems.device),
                )
                edits = source(name, params.split, 0, params.n_edits)
                write_shard(path, answers(system, systems[system], edits, judges, params.seed), EvalRecord)
            found += read_shard(path, EvalRecord)
            bar.update(params.n_edits)
    metrics = summarised(found, params.tasks)
    (scratch / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    _table(scratch / "metrics.csv", metrics)
    contact_sheet(found, params, metrics).save(scratch / "contact_sheet.png", optimize=True)
    _say(metrics, params)
    counts = {
        f"{system}_{name}": sum(one.success for one in found if (one.system, one.task) == (system, name)) for system, name in todo
    }
    return publish(scratch, root / OUT, "evaluation", knobs, counts)


Table = dict[str, dict[str, float | None]]


def summarised(found: list[EvalRecord], tasks: tuple[str, ...]) -> dict[str, Table]:
    """Means per system and task of `edit_success` and the five metrics; `overall`: mean of the trained tasks' means.

    What is undefined is left out of a mean and counted under `undefined_<metric>`; a mean of nothing is None.
    """
    trained = [name for name in tasks if task(name) not in HELD_OUT]
    systems = list(dict.fromkeys(one.system for one in found))
    out: dict[str, Table] = {}
    for metric in ("edit_success", "router", *METRICS):
        out[metric], missing = {}, {}
        for system in systems:
            row: dict[str, float | None] = {}
            lost: dict[str, float | None] = {}
            for name in tasks:
                every = [_value(metric, one) for one in found if (one.system, one.task) == (system, name)]
                known = [one for one in every if one is not None]
                row[name] = _mean(known)
                lost[name] = float(len(every) - len(known))
            out[metric][system] = {"overall": _mean([row[name] for name in trained if row[name] is not None]), **row}
            missing[system] = {"overall": sum(lost[name] or 0 for name in trained), **lost}
        if any(count for row in missing.values() for count in row.values()):
            out[f"undefined_{metric}"] = missing
    return out


def contact_sheet(found: list[EvalRecord], params: EvaluationParams, metrics: dict[str, Table]) -> Image.Image:
    """The first edits of every task: input, output, exact result; a green frame where the judge accepts the output."""
    shown = next((name for name in ("emuedit", "told") if name in params.systems), params.systems[0])
    strips = []
    for name in params.tasks:
        some = [one for one in found if (one.system, one.task) == (shown, name)][: params.columns]
        rows = [
            ("input", np.stack([decode_png(one.source) for one in some])),
            ("output", np.stack([decode_png(one.output) for one in some])),
        ]
        if all(one.exact is not None for one in some):
            rows.append(("exact", np.stack([decode_png(one.exact) for one in some if one.exact is not None])))
        title = f"{name}: {metrics['edit_success'][shown][name]:.0%} of {params.n_edits} succeed"
        strips.append(sheet.grid(rows, [one.instruction for one in some], 4, title, ("output", [one.success for one in some])))
    return sheet.tiled(strips, columns=2)


def _value(metric: str, one: EvalRecord) -> float | None:
    if metric == "edit_success":
        return float(one.success)
    return float(one.given_task == one.task) if metric == "router" else one.scores[metric]


def _mean(values: list[float] | list[float | None]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None  # type: ignore[arg-type]


def _table(path: Path, metrics: dict[str, Table]) -> None:
    """The same numbers, one line a system and task, for `dvc plots` and spreadsheets."""
    names = [name for name in metrics if not name.startswith("undefined_")]
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["system", "task", *names])
        for system, row in metrics["edit_success"].items():
            for name in row:
                table.writerow([system, name, *(metrics[metric][system][name] for metric in names)])


def _say(metrics: dict[str, Table], params: EvaluationParams) -> None:
    """The table of successes, for whoever watches."""
    success = metrics["edit_success"]
    print(f"{'edit success':14}" + "".join(f"{system:>10}" for system in params.systems))
    for name in ("overall", *params.tasks):
        cells = (success[system][name] for system in params.systems)
        print(f"{name:14}" + "".join(f"{'-' if cell is None else format(cell, '.2f'):>10}" for cell in cells))


if __name__ == "__main__":
    run(config.load(EvaluationParams, "evaluation"), Path())
