"""`emuedit benchmark FOLDER`: check a benchmark of real images, and calibrate its judge."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from emuedit import config, reference_check
from emuedit.data.dependencies import find_file
from emuedit.data.name_list import first_names
from emuedit.data.writable_folder import check_writable
from emuedit.metrics.benchmark_folder import JUDGE
from emuedit.models.model_files import base_model_sizes
from emuedit.training.presets import with_preset
from emuedit.worlds import model_access

if TYPE_CHECKING:
    from emuedit.metrics.judge_file import JudgeFile
    from emuedit.metrics.photo_benchmark import PhotoBenchmark
    from emuedit.metrics.similarity_judge import Calibration

_SETTINGS = ("clip", "dino", "size")
"""Settings of the judge that are options too."""
_SIZE = 512
_FEWEST_RESULTS = 4
"""Edits with results from which a task can be calibrated, see `SimilarityJudge.calibrate`."""
_SHOWN = 10
_OF_JUDGE = "judge's "


def add_commands(commands: Any) -> None:
    """Add the command to `emuedit`'s parser."""
    command = commands.add_parser("benchmark", help="check a folder of edits of real images, and calibrate its judge")
    command.set_defaults(run=_run)
    command.add_argument("folder", type=Path, help="folder with edits.csv and the images; see docs/own-data.md")
    default = "default: from judge.yaml, else from params.yaml"
    command.add_argument("--clip", help=f"open_clip model of the judge: 'model/tag', folder or hub id ({default})")
    command.add_argument("--dino", help=f"DINO model of the judge: folder or hub id ({default})")
    sizes = "side in px to which images are scaled (default: from judge.yaml, else the training resolution of params.yaml)"
    command.add_argument("--size", type=int, metavar="PX", help=sizes)
    command.add_argument("--calibrate", action="store_true", help="set the bounds from the edits with reference results")


def _run(options: argparse.Namespace) -> int:
    from emuedit.metrics import photo_benchmark

    rows = photo_benchmark.read_rows(options.folder)  # raises for a folder that is not a benchmark
    file = options.folder / JUDGE
    try:
        settings = _choose_settings(options)
    except ValidationError as error:
        problems = config.describe_values(error, {name: f"--{name}" for name in _SETTINGS})
        raise photo_benchmark.BenchmarkError("; ".join(problems)) from error
    _check_models(settings)
    if options.calibrate or not file.is_file() or settings != photo_benchmark.read_judge(options.folder):
        check_writable(options.folder)
    photo_benchmark.check_images(options.folder, rows)
    benchmark = photo_benchmark.PhotoBenchmark(options.folder, settings=settings)
    _print_rows(rows, benchmark)
    if not benchmark.rows:
        raise photo_benchmark.BenchmarkError(
            f"want an edit that can be judged in {options.folder}, got none of {len(rows)}; nothing was written: add results, or "
            "captions that differ"
        )
    _print_references(rows, benchmark)
    if options.calibrate:
        settings = benchmark.settings = _calibrate(benchmark)
    if not file.is_file() or settings != photo_benchmark.read_judge(options.folder):
        photo_benchmark.write_judge(options.folder, settings)
    if options.calibrate:
        print(f"\n{file}: bounds of {', '.join(settings.task_bounds) or 'no task'}")
    if tasks := benchmark.uncalibrated_tasks:
        advice = "" if options.calibrate else _advise(benchmark)
        print(f"\nuncalibrated, the judge's bounds are not measured: {', '.join(tasks)}{advice}")
    return 0


def _check_models(settings: "JudgeFile") -> None:
    """Print a note if the hub is unreachable. Raises BenchmarkError for models that do not exist or are of another kind."""
    from emuedit.metrics.photo_benchmark import BenchmarkError

    models, root = {"clip": settings.clip, "dino": settings.dino}, Path()
    named = ((key, problem) for key, name in models.items() for problem in reference_check.model_problems(name, root))
    problems, note = [f"{_OF_JUDGE}{key}: {problem}" for key, problem in named], ""
    if not problems:
        problems, note = model_access.check(models, root, section=_OF_JUDGE)
    if problems:
        raise BenchmarkError("\n".join([*problems, "nothing was written; name the judge's models with --clip and --dino"]))
    if note:
        print(f"{note}\n")


def _advise(benchmark: "PhotoBenchmark") -> str:
    """What makes the judge of the uncalibrated tasks a calibrated one."""
    n_usable = {task: len(rows) for task, rows in _usable_rows(benchmark).items() if task in benchmark.uncalibrated_tasks}
    if with_few := [task for task, n in n_usable.items() if n < _FEWEST_RESULTS]:
        edits = f"{_FEWEST_RESULTS} or more edits with different captions of each task"
        if len(with_few) == len(n_usable):
            return f"; add a `result` to {edits}, then --calibrate"
        return f"; add --calibrate, and for {', '.join(with_few)} a `result` to {edits} first"
    return "; add --calibrate"


def _print_rows(rows: Sequence[dict[str, str]], benchmark: "PhotoBenchmark") -> None:
    """Print the number of edits of each task, and the rows that cannot be judged."""
    from emuedit.metrics.benchmark_rows import can_be_judged

    print(f"{'task':12}{'edits':>7}{'results':>9}")
    for task in benchmark.tasks:
        of_task = [row for row in benchmark.rows if row["task"] == task]
        print(f"{task:12}{len(of_task):7d}{sum(bool(row.get('result')) for row in of_task):9d}")
    clip = benchmark.settings.clip
    if left_out := [(line, row["task"]) for line, row in enumerate(rows, start=2) if not can_be_judged(row, clip)]:
        print(
            f"\n{len(left_out)} of {len(rows)} edits are not used, because they cannot be judged: their captions are equal, or "
            "equal in what CLIP reads of them (77 tokens), and they have no result that differs from the image. Add a result, or "
            f"captions that differ, in the lines {_join_lines(left_out)}"
        )


def _print_references(rows: Sequence[dict[str, str]], benchmark: "PhotoBenchmark") -> None:
    """Print the share of unedited images that are accepted in edits compared with a reference result."""
    from emuedit.metrics.benchmark_rows import is_compared

    settings = benchmark.settings
    compared = [(line, row) for line, row in enumerate(rows, start=2) if is_compared(row, settings.clip)]
    if not compared:
        return
    errors = [(line, row["task"], benchmark.unchanged_error(row)) for line, row in compared]
    accepted = [(line, task) for line, task, error in errors if not error.objection(settings.bounds_of(task))]
    where = f": the lines {_join_lines(accepted)}; lower max_left in {benchmark.folder / JUDGE}" if accepted else ""
    share = len(accepted) / len(compared)
    print(f"\n{share:.2f} of the unedited images are accepted in {len(compared)} edits compared with their result{where}")
    if equal := [(line, task) for line, task, error in errors if not error.is_defined]:
        print(f"no output is accepted where the result equals the image: replace it in the lines {_join_lines(equal)}")


def _join_lines(lines: Sequence[tuple[int, str]]) -> str:
    """The first lines of the table, each with its task."""
    return first_names([f"{line} ({task})" for line, task in lines], _SHOWN)


def _usable_rows(benchmark: "PhotoBenchmark") -> dict[str, list[dict[str, str]]]:
    """Task -> rows that it can be calibrated from: those with results and different captions."""
    from emuedit.metrics.benchmark_rows import has_equal_captions

    clip = benchmark.settings.clip
    with_results = [row for row in benchmark.rows if row.get("result") and not has_equal_captions(row, clip)]
    return {task: [row for row in with_results if row["task"] == task] for task in benchmark.tasks}


def _calibrate(benchmark: "PhotoBenchmark") -> "JudgeFile":
    """The settings with calibrated bounds. Prints the shares that the bounds accept; raises BenchmarkError without any."""
    from emuedit.metrics.photo_benchmark import BenchmarkError

    usable = _usable_rows(benchmark)
    needed = f"{_FEWEST_RESULTS} edits with results and different captions"
    if not any(len(rows) >= _FEWEST_RESULTS for rows in usable.values()):
        counts = ", ".join(f"{len(rows)} of {task}" for task, rows in usable.items())
        raise BenchmarkError(
            f"want {needed} of one task to calibrate from, got {counts or 'none'} in {benchmark.folder}; nothing was written: "
            "add results, or omit --calibrate for a judge whose bounds are not measured"
        )
    calibrations = []
    print(f"\n{'accepted':12}{'right':>7}{'other':>7}{'undone':>8}   min_gain  DINO")
    for task, rows in usable.items():
        if len(rows) < _FEWEST_RESULTS:
            print(f"{task:12} want {needed}, got {len(rows)}")
            continue
        calibration = benchmark.calibrate(task, rows)
        calibrations.append(calibration)
        shares = f"{calibration.right:7.2f}{calibration.unrelated:7.2f}{calibration.unchanged:8.2f}"
        print(f"{task:12}{shares}   {calibration.bounds.min_gain:8.3f}  {calibration.min_dino:.2f}")
    for calibration in calibrations:
        if not calibration.separates:
            line = "the judge barely separates correct results from wrong or unchanged ones"
            print(f"{calibration.task}: {line}, so its bounds are not written; check its captions and results, or add edits")
    return _with_bounds(benchmark.settings, calibrations)


def _with_bounds(settings: "JudgeFile", calibrations: Sequence["Calibration"]) -> "JudgeFile":
    """The settings with the calibrated bounds; other bounds of these tasks, and other tasks, are kept as set by hand.

    A task whose calibration does not separate gets the bounds of tasks without their own entry in place of earlier ones.
    """
    from emuedit.metrics.judge_file import calibrated_bounds

    task_bounds, measured = dict(settings.task_bounds), dict(settings.measured)
    for calibration in calibrations:
        changes = calibrated_bounds(calibration.bounds if calibration.separates else settings.bounds)
        measured.pop(calibration.task, None)
        if calibration.separates:
            measured[calibration.task] = changes
        bounds = settings.bounds_of(calibration.task).model_copy(update=changes)
        if bounds == settings.bounds:
            task_bounds.pop(calibration.task, None)
        else:
            task_bounds[calibration.task] = bounds
    return settings.model_copy(update={"task_bounds": task_bounds, "measured": measured})


def _choose_settings(options: argparse.Namespace) -> "JudgeFile":
    """The judge's settings: of `judge.yaml`, of options, or for a new judge of the params. Bounds are valid for one set only."""
    from emuedit.metrics.judge_file import JudgeFile
    from emuedit.metrics.photo_benchmark import BenchmarkError, read_judge

    named = {name: value for name in _SETTINGS if (value := getattr(options, name)) is not None}
    file = options.folder / JUDGE
    if not file.is_file():
        values = _judge_of_params() | named
        if missing := [f"--{name}" for name in ("clip", "dino") if name not in values]:
            raise BenchmarkError(f"want {' and '.join(missing)} for a new judge without {config.PARAMS_FILE}")
        return JudgeFile(**values)
    judge = read_judge(options.folder)
    present = judge.model_dump(include={*_SETTINGS})
    if present != present | named:
        if JudgeFile(**present) != judge and not options.calibrate:
            print(f"{file}: the settings changed, so the bounds are removed\n")
        return JudgeFile(**present | named)
    if Path(config.PARAMS_FILE).is_file() and (others := _differences(present, _judge_of_params())):
        print(f"{file} differs from {config.PARAMS_FILE}: {others}; change it with the options\n")
    return judge


def _judge_of_params() -> dict[str, Any]:
    """Models and image size of a judge that match `params.yaml`; empty without that file."""
    file = Path(config.PARAMS_FILE)
    if not file.is_file():
        return {}
    world = config.load(config.World, "world", file)
    train = with_preset(config.read_yaml(file).get("train", {}))
    sizes = base_model_sizes(find_file(world.base_model, Path()))
    size = train.get("resolution") or (sizes.picture_px if sizes else _SIZE)
    return {"clip": world.clip, "dino": world.dino, "size": size}


def _differences(present: dict[str, Any], of_params: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value} (there {of_params[name]})" for name, value in present.items() if value != of_params[name])
