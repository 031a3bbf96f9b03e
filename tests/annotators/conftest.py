"""Images for the tests of annotators."""

import numpy as np
import pytest


@pytest.fixture
def images() -> np.ndarray:
    """Two images 40 x 56: a white square on black, and uniform grey."""
    array = np.zeros((2, 40, 56, 3), np.uint8)
    array[0, 10:30, 16:36] = 255
    array[1] = 128
    return array
