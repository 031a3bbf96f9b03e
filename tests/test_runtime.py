import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch

from emuedit.runtime import Runtime, generator, rng, seed_for


def test_seeds_are_the_same_for_ever() -> None:
    assert seed_for("pairs", 7) == 4173208345832928914
    assert 0 <= seed_for("x") < 2**63


def test_seeds_tell_keys_apart() -> None:
    groups: list[tuple[str | int, ...]] = [
        ("a", "b"),
        ("ab",),
        ("b", "a"),
        ("a", "b", ""),
        ("1",),
        (1,),
        (-1,),
        ("i1",),
        ("a|b",),
    ]
    assert len({seed_for(*keys) for keys in groups}) == len(groups)


def test_seeds_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = "from emuedit.runtime import seed_for; print(seed_for('pairs', 7))"
    out = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "99"}, capture_output=True, text=True, check=True)
    assert int(out.stdout) == seed_for("pairs", 7)


def test_seeds_refuse_keys_without_stable_text() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        seed_for()
    for key in (1.5, True, None):
        with pytest.raises(TypeError, match="want keys of kind str or int"):
            seed_for("a", key)  # type: ignore[arg-type]


def test_generators_repeat_and_differ() -> None:
    torch.testing.assert_close(
        torch.rand(4, generator=generator("a", 1)), torch.rand(4, generator=generator("a", 1)), rtol=0, atol=0
    )
    assert not torch.equal(torch.rand(4, generator=generator("a", 1)), torch.rand(4, generator=generator("a", 2)))
    np.testing.assert_array_equal(rng("a").random(4), rng("a").random(4))
    assert (rng("a").random(4) != rng("b").random(4)).all()


def test_explicit_choice() -> None:
    assert Runtime.choose("cpu", "bfloat16") == Runtime("cpu", "bfloat16")
    assert Runtime("cpu", "bfloat16").torch_dtype is torch.bfloat16
    assert Runtime("cpu", "float32").torch_device == torch.device("cpu")


@pytest.mark.parametrize(
    ("present", "want"),
    [
        (("cuda", "mps", "cpu"), Runtime("cuda", "bfloat16")),
        (("mps", "cpu"), Runtime("mps", "float32")),
        (("cpu",), Runtime("cpu", "float32")),
    ],
)
def test_auto_takes_the_best(present: tuple[str, ...], want: Runtime) -> None:
    with mock.patch("emuedit.runtime._present", return_value=present):
        assert Runtime.choose() == want


def test_refuses_what_is_not_there() -> None:
    with mock.patch("emuedit.runtime._present", return_value=("cpu",)):
        with pytest.raises(ValueError, match=r"want a device of this machine \('cpu'\), got 'cuda:1'"):
            Runtime.choose("cuda:1")
        with pytest.raises(ValueError, match="want device 'auto'"):
            Runtime.choose("gpu")
        with pytest.raises(ValueError, match="want dtype 'auto'"):
            Runtime.choose("cpu", "fp16")
