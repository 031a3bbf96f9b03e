"""The number of worker processes: by cores, by memory, and after running out of memory."""

import pytest

from emuedit.stages import MEMORY_ENV, pairs
from emuedit.synthesis import worker_pool as pool_module
from emuedit.synthesis.worker_pool import LocalWorkers, processes_that_fit

GIB = 2**30


@pytest.mark.parametrize(
    ("weights_bytes", "memory_bytes", "processes"),
    [(0, 64 * GIB, 8), (GIB, 16 * GIB, 2), (GIB, 23 * GIB, 2), (GIB, 24 * GIB, 3), (GIB, 2 * GIB, 1), (None, 64 * GIB, 1)],
)
def test_processes_are_limited_by_cores_and_memory(
    weights_bytes: int | None, memory_bytes: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "available_cores", lambda: 8)
    assert processes_that_fit(weights_bytes, memory_bytes) == processes


def test_a_stage_that_ran_out_of_memory_has_half_of_the_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(MEMORY_ENV, "2")
    for before, device, after in ((8, "cpu", 2), (1, "cpu", 1), (8, "cuda", 8)):
        assert pairs._with_fewer_processes(LocalWorkers(processes=before), device, 0) == LocalWorkers(processes=after)
    assert capsys.readouterr().out == "pairs: ran out of memory with 4 processes; retrying with 2\n"
