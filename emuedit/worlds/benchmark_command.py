"""`emuedit benchmark FOLDER`: check a benchmark of real images, and calibrate its judge."""

import argparse
from pathlib import Path
from typing import Any

from emuedit import config
from emuedit.data.dependencies import find_file
from emuedit.metrics.benchmark_folder import JUDGE
from emuedit.models.model_files import base_model_sizes
from emuedit.training.presets import with_preset

_MIN_MARGIN, _SIZE = 0.2, 512


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

    _set_judge(options)
    benchmark = photo_benchmark.PhotoBenchmark(options.folder)
    print(f"{'task':12}{'edits':>7}{'results':>9}")
    for task in benchmark.tasks:
        rows = [row for row in benchmark.rows if row["task"] == task]
        print(f"{task:12}{len(rows):7d}{sum(bool(row.get('result')) for row in rows):9d}")
    if not options.calibrate:
        return 0
    calibrations = []
    print(f"\n{'accepted':12}{'right':>7}{'other':>7}{'undone':>8}   min_gain  DINO")
    for task in benchmark.tasks:
        rows = [row for row in benchmark.rows if row["task"] == task and row.get("result")]
        different = [row for row in rows if row["input_caption"] != row["output_caption"]]
        if len(different) < 4:
            print(f"{task:12} want 4 edits with results and different captions, got {len(different)}")
            continue
        calibration = benchmark.calibrate(task, different)
        calibrations.append(calibration)
        shares = f"{calibration.right:7.2f}{calibration.unrelated:7.2f}{calibration.unchanged:8.2f}"
        print(f"{task:12}{shares}   {calibration.bounds.min_gain:8.3f}  {calibration.min_dino:.2f}")
    if not calibrations:
        raise photo_benchmark.BenchmarkError(f"want edits with results in {options.folder} to calibrate from, got none")
    for calibration in calibrations:
        if calibration.right - max(calibration.unrelated, calibration.unchanged) < _MIN_MARGIN:
            print(f"{calibration.task}: the judge barely separates correct results from wrong or unchanged ones")
    bounds = {calibration.task: calibration.bounds for calibration in calibrations}
    photo_benchmark.write_judge(options.folder, benchmark.settings.model_copy(update={"task_bounds": bounds}))
    print(f"\n{options.folder / JUDGE}: bounds of {', '.join(bounds)}")
    return 0


def _set_judge(options: argparse.Namespace) -> None:
    """Write `judge.yaml` if it is missing or options change its values. Bounds are valid for one set of values only."""
    from emuedit.metrics.photo_benchmark import BenchmarkError, JudgeFile, read_judge, read_rows, write_judge

    read_rows(options.folder)  # raises for a folder that is not a benchmark
    named = {name: value for name in ("clip", "dino", "size") if (value := getattr(options, name)) is not None}
    file = options.folder / JUDGE
    if not file.is_file():
        values = _judge_of_params() | named
        if missing := [f"--{name}" for name in ("clip", "dino") if name not in values]:
            raise BenchmarkError(f"want {' and '.join(missing)} for a new judge without {config.PARAMS_FILE}")
        write_judge(options.folder, JudgeFile(**values))
        return
    judge = read_judge(options.folder)
    present = judge.model_dump(include={"clip", "dino", "size"})
    if present != present | named:
        write_judge(options.folder, JudgeFile(**present | named))
        if JudgeFile(**present) != judge:
            print(f"{file}: the settings changed, so the bounds were removed; add --calibrate\n")
    elif Path(config.PARAMS_FILE).is_file() and (others := _differences(present, _judge_of_params())):
        print(f"{file} differs from {config.PARAMS_FILE}: {others}; change it with the options\n")


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
