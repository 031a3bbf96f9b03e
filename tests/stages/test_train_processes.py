"""What the processes of a training, on one machine or several, do together and what one of them does alone."""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit.editor import sampling
from emuedit.stages import train
from emuedit.training import starting_point
from emuedit.training.optim.optimization import STATE_FILE
from tests.stages.workspace import load_params, skip_estimates
from tests.warm_server import fork_launchers
from toyworld.edits import exact_dataset

TWO_PROCESSES = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: 2
machine_rank: 0
main_training_function: main
rdzv_backend: static
same_network: true
use_cpu: true
main_process_port: 29537
"""

pytestmark = pytest.mark.timeout(300)


class StubEditor:
    tasks = ("local",)
    is_finished = False

    def finish(self) -> None:
        self.is_finished = True

    @contextmanager
    def sampling(self) -> Iterator[str]:
        yield "sampler"


@pytest.mark.parametrize("main", [True, False])
def test_all_processes_make_a_preview_and_the_main_one_prints_it(
    main: bool, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own folder: they would write the same files."""

    def prepare(source: str, tasks: Any, n_edits: int, settings: Any, folder: Path, device: str) -> Any:
        assert device == "cuda:1"

        def edit(sampler: str, step: int) -> dict[str, float]:
            (folder / f"preview-{step}.txt").write_text(sampler)
            return {"success.overall": 0.25}

        return edit

    monkeypatch.setattr("emuedit.config.import_function", lambda reference, name: prepare)
    params, editor = load_params(train.TrainParams, "train", preview={"every_min": 2.0}), StubEditor()
    preview = train._prepare_preview(params, editor, editor.tasks, tmp_path, "cuda:1", main)  # type: ignore[arg-type]
    assert preview is not None
    assert (preview.every_s, preview.show(7)) == (120.0, {"success.overall": 0.25})
    assert (tmp_path / "preview-7.txt").exists()
    assert capsys.readouterr().out == (f"train: step 7, 0.25 of the edits succeed; see {tmp_path}\n" if main else "")


@pytest.mark.parametrize(
    ("is_main", "shards", "is_made"), [(True, False, True), (False, False, False), (True, True, True), (False, True, True)]
)
def test_a_preview_is_made_by_the_processes_that_show_it(
    is_main: bool, shards: bool, is_made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its edits and judge take memory; with sharded weights, all processes must sample."""
    previews: list[Any] = []
    accelerator = SimpleNamespace(
        is_main_process=is_main, device=torch.device("cuda", 1), distributed_type="FSDP" if shards else "MULTI_GPU"
    )

    class StubLoop:
        def __init__(self, *arguments: Any) -> None:
            previews.append(arguments[-1])

        def run(self) -> None:
            pass

    monkeypatch.setattr(train, "open_accelerator", lambda *_: contextlib.nullcontext(accelerator))
    monkeypatch.setattr(train.TrainJob, "make_editor", lambda _: (StubEditor(), StubEditor()))
    monkeypatch.setattr(train, "TrainLoop", StubLoop)
    monkeypatch.setattr(train, "_prepare_preview", lambda *arguments: arguments[4])
    params = load_params(train.TrainParams, "train", dtype="float32")
    train.TrainJob(params, None, tmp_path, tmp_path).train("cuda")  # type: ignore[arg-type]
    assert previews == ["cuda:1" if is_made else None]


@pytest.mark.parametrize("rank", [None, 2])
def test_adapters_are_not_merged_in_the_training(rank: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge needs all weights in float32: it is done on the CPU."""
    monkeypatch.setattr(train.TrainJob, "make_editor", lambda _: (StubEditor(), StubEditor()))
    monkeypatch.setattr(train, "TrainLoop", lambda *_: SimpleNamespace(run=lambda: None))
    lora = None if rank is None else {"rank": rank}
    params = load_params(train.TrainParams, "train", preview=None, dtype="float32", lora=lora, lr_mult_text=0.0)
    editor: Any = train.TrainJob(params, None, tmp_path, tmp_path).train("cpu")  # type: ignore[arg-type]
    assert editor.is_finished == (rank is None)


@pytest.mark.slow
def test_the_making_of_the_editor_is_reported(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a large base model it takes a minute, before the first line of the loop."""

    class StubLoop:
        def __init__(self, *_: object) -> None:
            pass

        def run(self) -> None:
            print("loop", file=sys.stderr)

    printed: list[str] = []

    def make(*_: object) -> tuple[StubEditor, SimpleNamespace]:
        until = time.monotonic() + 30
        while "".join(printed).count("train: making the editor") < 3:
            assert time.monotonic() < until, f"want three reports, got {printed}"
            time.sleep(0.05)
            printed.append(capsys.readouterr().err)
        return StubEditor(), SimpleNamespace(tasks=())

    monkeypatch.setenv("EMUEDIT_PROGRESS_SECONDS", "0.1")
    monkeypatch.setattr(train.TrainJob, "make_editor", make)
    monkeypatch.setattr(train, "TrainLoop", StubLoop)
    params = load_params(train.TrainParams, "train", preview=None, dtype="float32")
    train.TrainJob(params, None, tmp_path, tmp_path).train("cpu")  # type: ignore[arg-type]
    _, loop, after = capsys.readouterr().err.partition("loop")
    assert loop
    assert "making" not in after


@pytest.mark.slow
@pytest.mark.usefixtures("no_mlflow")
def test_of_several_machines_the_first_one_alone_publishes(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a folder that they share, the others would delete and write it at the same time; without one they have no state."""
    skip_estimates(monkeypatch)
    exact_dataset.write_dataset(tmp_path, {"local": 4, "remove": 4})
    launched: list[Path] = []
    monkeypatch.setattr(train, "run_accelerate", lambda config, *work: launched.append(config))
    params = load_params(
        train.TrainParams,
        "train",
        start="base_model",
        device="cpu",
        dtype="float32",
        batch_size=4,
        accelerate_config="several.yaml",
    )
    several = "distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 4\nuse_cpu: true\n"
    (tmp_path / "several.yaml").write_text(f"{several}machine_rank: 1\n")
    summary = train.run(params, tmp_path)
    assert launched == [tmp_path / "several.yaml"]
    assert summary.counts["pairs"] + summary.counts["held_out_pairs"] == 8
    output = capsys.readouterr().out
    assert "the first machine (machine_rank 0) publishes to models/editor" in output
    assert ", 4 processes, " in output, "those of the config file, not of this machine"
    assert not (tmp_path / train.OUT).exists()
    assert list((tmp_path / "scratch" / "train").iterdir()), "the first machine reads the state there"
    (tmp_path / "several.yaml").write_text(f"{several}machine_rank: 0\n")
    with pytest.raises(FileNotFoundError, match=STATE_FILE):
        train.run(params, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("no_mlflow")
def test_processes_of_a_config_file_train_like_one(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They publish an editor whose weights differ from those of one process by rounding."""
    fork_launchers(monkeypatch)
    values = {"start": "base_model", "device": "cpu", "dtype": "float32", "batch_size": 4, "steps": 3, "warmup_steps": 1}
    values |= {"stored_dtype": "float32", "preview": None, "processes": 1}
    weights = []
    for name, changes in (("alone", {}), ("launched", {"accelerate_config": "two.yaml"})):
        root = tmp_path / name
        exact_dataset.write_dataset(root, {"local": 6, "remove": 6})
        (root / "two.yaml").write_text(TWO_PROCESSES)
        params = load_params(train.TrainParams, "train", **values | changes)
        train.run(params, root)
        weights.append(joined(sampling.load(root / train.OUT).net))
    assert ", 2 processes, " in capsys.readouterr().out
    start = starting_point.resolve("base_model", params.world, root)
    untrained, _ = start.editor(("local", "remove"), params.task_embedding_dim, True, params.seed)
    movement = (weights[0] - joined(untrained)).norm()
    assert 0 < (weights[1] - weights[0]).norm() < 0.01 * movement


def joined(net: torch.nn.Module) -> torch.Tensor:
    """All weights as one vector, in the order of their names."""
    return torch.cat([value.flatten().double() for _, value in sorted(net.state_dict().items())])
