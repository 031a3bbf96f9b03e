"""Turns are judged by the judge of their task."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

Load = Callable[[str], ModuleType]


@pytest.mark.slow
def test_a_ghost_of_a_removed_object_fails(load_script: Load) -> None:
    script = load_script("drift").add_and_remove(4)
    assert script.judge(0, script.states[1]).all()
    assert script.judge(1, script.states[0]).all()
    assert not script.judge(0, script.states[0]).any()
    ghost = (script.states[0] * 0.6 + script.states[1] * 0.4).astype(np.uint8)
    assert script.judge(1, ghost).tolist() == [True, False, False, False]  # the first object has little contrast
