import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from emuedit.config import load
from emuedit.data.publish import publish, scratch_folder
from emuedit.data.records import Instruction
from emuedit.data.shards import write_shard
from emuedit.stages import pairs
from emuedit.synthesis import worker_pool
from emuedit.synthesis.worker_pool import Local, Ray, Workers, WorkersError, hired

ROOT = Path(__file__).parents[2]
TEAMS = [Local(kind="local"), Ray(kind="ray", actors=2, cpus=1)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Ray of two CPUs for all tests of this file: it takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local"}.items():
            patch.setenv(name, value)
        ray = worker_pool._ray()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", object_store_memory=80 * 2**20)
        yield
        ray.shutdown()


def counting(folder: Path, broken: str = "") -> Callable[[], Callable[[str], tuple[int, int]]]:
    """Builds a worker that notes its start and every job in files, and says which process did it."""

    def build() -> Callable[[str], tuple[int, int]]:
        (folder / f"start-{os.getpid()}").touch(exist_ok=False)
        done = []

        def do(job: str) -> tuple[int, int]:
            if job == broken:
                raise ValueError(f"cannot do {job}")
            (folder / job).touch(exist_ok=False)
            done.append(job)
            return os.getpid(), len(done)

        return do

    return build


@pytest.mark.parametrize("who", TEAMS, ids=lambda who: who.kind)
def test_every_job_is_done_once_by_workers_that_are_built_once(who: Workers, tmp_path: Path) -> None:
    jobs = [{f"shard-{n}": f"job-{n}" for n in part} for part in (range(5), range(5, 8), ())]
    with hired(who, counting(tmp_path), "cpu") as team:
        done = [dict(team(part)) for part in jobs]
    assert [set(one) for one in done] == [set(one) for one in jobs]
    assert {path.name for path in tmp_path.glob("job-*")} == {f"job-{n}" for n in range(8)}
    started = {int(path.name.partition("-")[2]) for path in tmp_path.glob("start-*")}
    assert {pid for one in done for pid, _ in one.values()} <= started
    assert (started == {os.getpid()}) if who.kind == "local" else (len(started) <= 2 and os.getpid() not in started)


def test_an_actor_without_room_holds_up_nobody(tmp_path: Path) -> None:
    with hired(Ray(kind="ray", actors=5, cpus=1), counting(tmp_path), "cpu") as team:
        assert len(dict(team({f"shard-{n}": f"job-{n}" for n in range(4)}))) == 4


def test_a_failed_job_is_named(tmp_path: Path) -> None:
    jobs = {f"shard-{n}": f"job-{n}" for n in range(3)}
    with hired(TEAMS[0], counting(tmp_path, "job-1"), "cpu") as team, pytest.raises(ValueError, match="cannot do") as here:
        list(team(jobs))
    assert here.value.__notes__ == ["in shard-1"]
    (tmp_path / "there").mkdir()
    with (
        hired(TEAMS[1], counting(tmp_path / "there", "job-1"), "cpu") as team,
        pytest.raises(WorkersError, match=r"in shard-1: (.|\n)*ValueError: cannot do job-1"),
    ):
        list(team(jobs))


def test_a_worker_that_cannot_start_says_why() -> None:
    def build() -> Callable[[str], str]:
        raise ValueError("no models here")

    with hired(TEAMS[1], build, "cpu") as team, pytest.raises(WorkersError, match=r"start of a worker: (.|\n)*no models here"):
        list(team({"shard-0": "job"}))


def test_without_ray_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkersError, match="run `uv sync --extra ray`"), hired(TEAMS[1], lambda: str, "cpu"):
        pass


def test_the_knob_says_who(tmp_path: Path) -> None:
    read: Any = TypeAdapter(Workers).validate_python
    assert [read(one.model_dump()) for one in TEAMS] == TEAMS
    with pytest.raises(ValueError, match="cpus"):
        read({"kind": "ray", "actors": 2})


@pytest.mark.slow
def test_actors_paint_the_same_bytes(tmp_path: Path) -> None:
    given = [
        Instruction("c", "remove", "go", f"a red star on {ground}", f"an empty {ground}", "red star", None, False, 0, "", "")
        for ground in ("grass", "sand", "snow")
    ]
    quick = {"steps": 2, "device": "cpu", "dtype": "float32", "instructions_per_shard": 1}
    loose = {"detector_threshold": 0.0, "min_area": 0.0, "max_area": 1.0}  # two steps paint no star
    made = []
    for who in TEAMS:
        root = tmp_path / who.kind
        scratch = scratch_folder(root, "instructions", "test")
        write_shard(scratch / "shard-00000.parquet", given, Instruction)
        publish(scratch, root / pairs.IN, "instructions", {}, {})
        (root / "emuedit").symlink_to(ROOT / "emuedit")
        params = load(pairs.PairsParams, "pairs", ROOT / "params.yaml").model_copy(update={**quick, **loose, "workers": who})
        assert pairs.run(params, root).counts["pairs_remove"] == 3
        made.append({path.name: path.read_bytes() for path in sorted((root / pairs.OUT).iterdir())})
    assert len(made[0]) == 7  # pairs, drops, the summary
    assert made[0] == made[1]
