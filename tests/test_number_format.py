import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from emuedit import number_format
from emuedit.number_format import MAX_ERROR, MIN_SPEEDUP, ProbeResult, measure, probe

MEASURED = ProbeResult("bfloat16", 3.0, 0.004)


def use_seconds(monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float) -> None:
    """Pretend that every operation takes this long in each number format."""
    seconds = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(number_format, "_fastest", lambda run: seconds[run().dtype])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [
        (1.0, 0.25, "bfloat16"),
        (1.1, 1.0, "bfloat16"),
        (1.09, 1.0, "float32"),
        (1.0, 1.0, "float32"),
        (1.0, 20.0, "float32"),
    ],
)
def test_bfloat16_is_taken_only_where_it_is_clearly_faster(
    float32: float, bfloat16: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_seconds(monkeypatch, float32, bfloat16)
    result = measure()
    assert result.dtype == expected
    assert result.speedup == pytest.approx(float32 / bfloat16, abs=1e-3)
    assert (result.speedup >= MIN_SPEEDUP) == (expected == "bfloat16")


def breaks_bfloat16(operation: Callable[..., Tensor], damage: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The operation with a damaged result for bfloat16."""

    def damaged(left: Tensor, right: Tensor, **options: Any) -> Tensor:
        result = operation(left, right, **options)
        return damage(result) if left.dtype is torch.bfloat16 else result

    return damaged


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda x: 1.05 * x, torch.zeros_like, lambda x: torch.nan * x], ids=["5%", "zeros", "nan"])
@pytest.mark.parametrize("operation", ["conv2d", "matmul"])
def test_bfloat16_is_not_taken_where_its_results_are_wrong(
    operation: str, damage: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_seconds(monkeypatch, 1.0, 0.1)
    assert measure().dtype == "bfloat16"
    library: Any = functional if operation == "conv2d" else torch
    monkeypatch.setattr(library, operation, breaks_bfloat16(getattr(library, operation), damage))
    result = measure()
    assert result.dtype == "float32"
    assert not result.error <= MAX_ERROR


@pytest.mark.slow
def test_the_rounding_of_bfloat16_alone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    use_seconds(monkeypatch, 1.0, 0.1)
    assert 0 < measure().error < 0.01


@pytest.mark.slow
def test_a_measurement_of_this_machine_takes_less_than_seconds() -> None:
    measure()  # the first one loads libraries
    start = time.monotonic()
    result = measure()
    assert time.monotonic() - start < 5
    assert result.dtype in ("float32", "bfloat16")
    assert result.speedup > 0
    assert str(result).startswith(f"{result.dtype} (bfloat16 runs at {result.speedup:.2f} times the speed of float32")


@pytest.mark.parametrize(("seconds", "n_runs"), [(0.001, 5), (0.006, 3), (1.0, 1)])
def test_fast_operations_are_repeated_and_slow_ones_are_not(seconds: float, n_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [0.0], iter([seconds, *[1.5 * seconds] * 9])
    runs: list[float] = []

    def run() -> None:
        runs.append(next(durations))
        now[0] += runs[-1]

    monkeypatch.setattr(number_format, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert number_format._fastest(run) == pytest.approx(seconds)
    assert len(runs) == n_runs


@pytest.fixture
def measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ProbeResult]]:
    """The measurements that `probe` made, with a cache folder of its own; each one measures a higher speed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    results: list[ProbeResult] = []

    def fake_measure() -> ProbeResult:
        results.append(replace(MEASURED, speedup=3.0 + len(results)))
        return results[-1]

    monkeypatch.setattr(number_format, "measure", fake_measure)
    return results


def cache_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_machine_is_measured_once(measurements: list[ProbeResult], tmp_path: Path) -> None:
    assert probe() == probe() == probe() == MEASURED
    assert len(measurements) == 1
    (file,) = cache_files(tmp_path)
    assert file.parent == tmp_path / "emuedit" / "number-format"
    file.write_text(file.read_text().replace("bfloat16", "float32"))
    assert probe().dtype == "float32", "the file decides"


def change_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_format, "_cpu_model", lambda: "another CPU")


def change_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "99.0")


def change_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)


def change_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.mark.parametrize("change", [change_cpu, change_torch, change_threads, change_instruction_set])
def test_another_cpu_torch_number_of_threads_or_instruction_set_is_measured_again(
    change: Callable[[pytest.MonkeyPatch], None], measurements: list[ProbeResult]
) -> None:
    first = probe()
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        assert probe() != first
        assert probe() == measurements[1]
    assert probe() == first, "what was measured before is still known"
    assert len(measurements) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"\xff\xfe", b"[]", b"3", b'{"dtype": "bfloat16"}', b'{"dtype": "int3", "speedup": 1.0, "error": 0.0}',
     b'{"dtype": "bfloat16", "speedup": 1.0, "error": 0.0, "more": 1}'],
)  # fmt: skip
def test_a_broken_cache_file_is_measured_again_and_replaced(
    content: bytes, measurements: list[ProbeResult], tmp_path: Path
) -> None:
    probe()
    (file,) = cache_files(tmp_path)
    file.write_bytes(content)
    assert probe() == probe() == measurements[1]
    assert len(measurements) == 2
    assert cache_files(tmp_path) == [file]


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    measurements: list[ProbeResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert probe() == measurements[0]
    assert probe() == measurements[1]


def test_a_user_without_a_home_folder_is_no_error(measurements: list[ProbeResult], monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert probe() == measurements[0]
    assert probe() == measurements[1]
