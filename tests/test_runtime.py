import contextlib
import importlib
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from typing import get_type_hints
from unittest import mock

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from emuedit import number_format
from emuedit.number_format import ProbeResult
from emuedit.runtime import Runtime, generator, rng, sample, seed_for


def test_seeds_never_change() -> None:
    assert seed_for("pairs", 7) == 4173208345832928914
    assert 0 <= seed_for("x") < 2**63


def test_seeds_depend_on_the_kinds_the_order_and_the_limits_of_keys() -> None:
    groups: list[tuple[str | int, ...]] = [
        ("a", "b"), ("ab",), ("b", "a"), ("a", "b", ""), ("1",), (1,), (-1,), ("i1",), ("a|b",),
    ]  # fmt: skip
    assert len({seed_for(*keys) for keys in groups}) == len(groups)


@pytest.mark.slow
def test_seeds_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = "from emuedit.runtime import seed_for; print(seed_for('pairs', 7))"
    process = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "99"}, capture_output=True, text=True, check=True
    )
    assert int(process.stdout) == seed_for("pairs", 7)


def test_keys_without_a_stable_text_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        seed_for()
    for key in (1.5, True, None):
        with pytest.raises(TypeError, match="want keys of type str or int"):
            seed_for("a", key)  # type: ignore[arg-type]


def test_generators_with_the_same_keys_give_the_same_numbers() -> None:
    first, same = (torch.rand(4, generator=generator("a", 1)) for _ in range(2))
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert not torch.equal(first, torch.rand(4, generator=generator("a", 2)))
    np.testing.assert_array_equal(rng("a").random(4), rng("a").random(4))
    assert (rng("a").random(4) != rng("b").random(4)).all()


def test_an_explicit_choice_is_taken_and_never_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_format, "probe", lambda: pytest.fail("an explicit number format was probed"))
    monkeypatch.setattr(number_format, "measure", lambda: pytest.fail("an explicit number format was measured"))
    for dtype in ("float32", "bfloat16", "float16"):
        assert Runtime.choose("cpu", dtype) == Runtime("cpu", dtype)
        assert Runtime.choose("auto", dtype).dtype == dtype
    assert Runtime("cpu", "bfloat16").torch_dtype is torch.bfloat16
    assert Runtime("cpu", "float32").torch_device == torch.device("cpu")


@pytest.mark.parametrize(
    ("present", "probed", "expected"),
    [
        (("cuda", "mps", "cpu"), None, Runtime("cuda", "bfloat16")),
        (("cuda", "cpu", "no bfloat16"), None, Runtime("cuda", "float32")),
        (("mps", "cpu"), None, Runtime("mps", "float32")),
        (("cpu",), "float32", Runtime("cpu", "float32")),
        (("cpu",), "bfloat16", Runtime("cpu", "bfloat16")),
    ],
)
def test_auto_takes_the_best_device_and_on_a_cpu_the_probed_number_format(
    present: tuple[str, ...], probed: str | None, expected: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe() -> ProbeResult:
        assert probed is not None, "a device other than a CPU was probed"
        return ProbeResult(probed, 1.0, 0.0)

    monkeypatch.setattr(number_format, "probe", probe)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: "no bfloat16" not in present)
    monkeypatch.setattr("torch.cuda.device", contextlib.nullcontext)
    with mock.patch("emuedit.runtime._present_devices", return_value=present):
        assert Runtime.choose() == expected


def test_auto_asks_the_named_gpu_for_its_number_format(monkeypatch: pytest.MonkeyPatch) -> None:
    current = ["cuda:0"]

    @contextlib.contextmanager
    def device(name: str) -> Iterator[None]:
        current.append(name)
        yield
        current.pop()

    monkeypatch.setattr("torch.cuda.device", device)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: current[-1] == "cuda:1")
    with mock.patch("emuedit.runtime._present_devices", return_value=("cuda", "cpu")):
        assert Runtime.choose("cuda:1").dtype == "bfloat16"
        assert Runtime.choose("cuda:2").dtype == "float32"


def test_a_sample_is_a_part_of_the_permutation_and_takes_no_memory_for_the_longest_text_each() -> None:
    texts = [str(number) for number in range(100)]
    assert sample(texts, 7, rng("x")) == rng("x").permutation(texts)[:7].tolist()
    assert sample(texts, 1000, rng("x")) == rng("x").permutation(texts).tolist()
    assert sample([], 3, rng("x")) == []
    tracemalloc.start()
    try:
        sample([*texts * 20, "long" * 5000], 10, rng("x"))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_autocast_is_off_for_float32_only() -> None:
    left = right = torch.ones(2, 2)
    for dtype, is_on in (("float32", False), ("bfloat16", True)):
        with Runtime("cpu", dtype).autocast():
            assert (left @ right).dtype is (torch.bfloat16 if is_on else torch.float32)


def test_devices_and_number_formats_that_are_not_there_are_refused() -> None:
    with mock.patch("emuedit.runtime._present_devices", return_value=("cpu",)):
        with pytest.raises(ValueError, match=r"want a device of this machine \('cpu'\), got 'cuda:1'"):
            Runtime.choose("cuda:1")
        with pytest.raises(ValueError, match="want device 'auto'"):
            Runtime.choose("gpu")
        with pytest.raises(ValueError, match="want dtype 'auto'"):
            Runtime.choose("cpu", "fp16")
        for name in ("cuda:", "cuda:x", "cpu:0", "auto:1", ""):
            with pytest.raises(ValueError, match="want device 'auto'"):
                Runtime.choose(name)


@pytest.mark.parametrize("stage", ["pairs", "router", "validation", "train", "inversion", "evaluation"])
def test_the_params_of_a_stage_refuse_an_unknown_device(stage: str) -> None:
    """Before, it was found when the stage started."""
    params = importlib.import_module(f"emuedit.stages.{stage}")
    field = TypeAdapter(get_type_hints(getattr(params, f"{stage.title()}Params"), include_extras=True)["device"])
    assert field.validate_python("cuda:7") == "cuda:7"
    with pytest.raises(ValidationError, match=r"want device 'auto', 'cuda', 'mps', 'cpu' \(or 'cuda:1'\); got 'gpu'"):
        field.validate_python("gpu")


@pytest.mark.slow
def test_the_package_runs_as_the_command() -> None:
    process = subprocess.run([sys.executable, "-m", "emuedit", "--help"], capture_output=True, text=True, check=True)
    assert process.stdout.startswith("usage: emuedit ")
