import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit import config
from emuedit.data.publish import read_summary
from emuedit.editor import sampling
from emuedit.stages import train
from emuedit.stages.train import Params, TrainError
from emuedit.tracking import read_stats
from emuedit.training import loss
from toyworld.edits import exact_dataset

ROOT = Path(__file__).parents[2]
SMALL = {"steps": 6, "processes": 1, "batch": 4, "dtype": "float32", "device": "cpu", "warmup_steps": 2, "log_every_steps": 1}
SOON = {"eval_every_steps": 3, "save_every_s": 0.0, "held_out_share": 0.3, "stored_dtype": "float32", "task_width": 8}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, and no MLflow: it is the mirror's business."""
    monkeypatch.setattr("emuedit.tracking.stats._Mirror._try", lambda self: None)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with exact pairs of two tasks."""
    root = tmp_path_factory.mktemp("world")
    exact_dataset.write_dataset(root, {"local": 12, "remove": 12})
    return root


def knobs(**changes: object) -> Params:
    base = config.load(Params, "train", ROOT / "params.yaml").model_dump()
    base["world"]["base_model"] = str(ROOT / "toyworld/weights/base_model")
    return Params.model_validate(base | SMALL | SOON | changes)


def root_of(world: Path, tmp_path: Path) -> Path:
    (tmp_path / "data").symlink_to(world / "data")
    return tmp_path


def weights(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted((root / train.OUT).rglob("*.safetensors"))}


def test_stopped_and_resumed_equals_never_stopped(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """N + M steps == N, stop, M; bit for bit, with EMA, optimizer, times, noise, dropout and order of pairs."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, parts = root_of(world, tmp_path / "a"), root_of(world, tmp_path / "b")
    train.run(knobs(), whole)
    per_sample, calls = loss.per_sample, []

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:  # after a look at the held-out loss, in the middle of a step
            raise KeyboardInterrupt
        return per_sample(*args, **kwargs)

    monkeypatch.setattr(loss, "per_sample", dies)
    with pytest.raises(KeyboardInterrupt):
        train.run(knobs(), parts)
    assert not (parts / train.OUT).exists()
    monkeypatch.setattr(loss, "per_sample", per_sample)
    train.run(knobs(), parts)
    assert weights(parts) == weights(whole)
    assert not list((parts / "scratch").glob("train/*"))


def test_what_is_published(world: Path, tmp_path: Path) -> None:
    root = root_of(world, tmp_path)
    summary = train.run(knobs(steps=4), root)
    assert read_summary(root / train.OUT) == summary
    assert summary.counts["steps"] == 4
    assert summary.counts["pairs"] + summary.counts["held_out_pairs"] == 24
    assert set(summary.params["data"]) == {"pairs", "dataset"}
    index = json.loads((root / train.OUT / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    lines = [json.loads(line) for line in (root / train.OUT / "stats.jsonl").read_text().splitlines()]
    logged: dict[str, Any] = {}
    for line in lines:
        logged |= line.get("metrics", {})
    assert {"loss", "lr", "grad_norm", "samples_per_second", "held_out", "held_out.local", "held_out.remove"} <= set(logged)
    editor = sampling.load(str(root / train.OUT))
    start = train.text_to_image.load(str(ROOT / "toyworld/weights/base_model"))
    assert not torch.equal(editor.net.unet.conv_out.weight, start.unet.conv_out.weight)
    assert editor.net.unet.conv_in.weight[:, 8:].abs().max() > 0
    got = editor.edit(torch.zeros(1, 3, 64, 64), ["make it red"], ["local"], [0], steps=1, s_I=1.0, s_T=1.0)
    assert got.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("lr_text", [0.0, 0.3])
def test_the_text_encoder_learns_only_if_asked(lr_text: float, world: Path, tmp_path: Path) -> None:
    root = root_of(world, tmp_path)
    train.run(knobs(steps=2, lr_text=lr_text), root)
    was = train.text_to_image.load(str(ROOT / "toyworld/weights/base_model")).text_encoder.state_dict()
    now = sampling.load(str(root / train.OUT)).frame.text_encoder.state_dict()
    changed = [name for name, value in now.items() if not torch.equal(value, was[name])]
    assert len(changed) > 0.5 * len(was) if lr_text else not changed


def test_the_average_is_stepped_and_published(world: Path, tmp_path: Path) -> None:
    """diffusers' scripts shipped averages that never moved (diffusers#5783)."""
    roots = []
    for name, decay in (("raw", 0.0), ("slow", 0.999)):
        (tmp_path / name).mkdir()
        roots.append(root_of(world, tmp_path / name))
        train.run(knobs(steps=3, ema_decay=decay), roots[-1])
    raw, slow = (sampling.load(str(root / train.OUT)).net.unet.conv_in.weight[:, 8:].abs().mean() for root in roots)
    assert 0 < slow < raw, "the average starts at zero there and lags behind"


def test_a_loss_that_is_no_number_stops_with_the_ids(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, calls = root_of(world, tmp_path), []
    per_sample = loss.per_sample

    def breaks(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[2].ids)
        return per_sample(*args, **kwargs) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(loss, "per_sample", breaks)
    with pytest.raises(TrainError, match=r"got nan at step 1.*bad-batch\.json"):
        train.run(knobs(), root)
    (file,) = (root / "scratch/train").glob("*/bad-batch.json")
    assert json.loads(file.read_text()) == {"step": 1, "pair_ids": list(calls[1])}


def test_rate_rises_holds_and_falls() -> None:
    params = knobs(steps=100, warmup_steps=10, decay_share=0.4, lr=1.0)
    rates = [train.rate(step, params) for step in range(100)]
    np.testing.assert_allclose([rates[0], rates[9], rates[30], rates[60], rates[80], rates[99]], [0.1, 1, 1, 1, 0.5, 0.025])
    cosine = params.model_copy(update={"decay": "cosine"})
    np.testing.assert_allclose([train.rate(step, cosine) for step in (60, 80, 99)], [1, 0.5, 0.0015], atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_kill_9_costs_nothing(world: Path, tmp_path: Path) -> None:
    """A real kill of a real process, in the middle of a step; the same command then ends where the unbroken one does."""
    script = (
        "import sys, pathlib, torch, emuedit.tracking.stats as k; torch.set_num_threads(1); k._Mirror._try = lambda self: None\n"
        "from emuedit import train\n"
        "train.run(train.TrainParams.model_validate_json(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, killed = root_of(world, tmp_path / "a"), root_of(world, tmp_path / "b")
    params = knobs(steps=12)
    command = [sys.executable, "-W", "ignore", "-c", script, params.model_dump_json(), str(killed)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not list(killed.glob("scratch/train/*/state.pt")):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (killed / train.OUT).exists()
    train.run(params, killed)
    train.run(params, whole)
    assert weights(killed) == weights(whole)


def test_two_processes_train_as_one(world: Path, tmp_path: Path) -> None:
    """Shares of a batch, gradients averaged: rounding apart, the same weights; and the same command resumes with both."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone, both = root_of(world, tmp_path / "one"), root_of(world, tmp_path / "two")
    train.run(knobs(steps=3), alone)
    train.run(knobs(steps=3, processes=2), both)
    one, two = (
        [line["metrics"] for line in read_stats(root / train.OUT / "stats.jsonl") if "loss" in line.get("metrics", {})]
        for root in (alone, both)
    )
    assert len(one) == len(two) == 3
    for key, rtol in (("loss", 1e-4), ("grad_norm", 1e-3)):
        np.testing.assert_allclose(two[0][key], one[0][key], rtol=rtol, err_msg=key)
        np.testing.assert_allclose(two[2][key], one[2][key], rtol=0.02, err_msg=key)  # Adam makes much of rounding


def test_a_batch_that_cannot_be_shared_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="want a batch that 3 processes can share evenly, got 4"):
        train.run(knobs(processes=3), root_of(world, tmp_path))
