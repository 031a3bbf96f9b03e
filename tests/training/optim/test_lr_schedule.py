import numpy as np
import pytest

from emuedit.training.optim.lr_schedule import LrSchedule


def test_the_rate_rises_stays_and_falls_linearly_to_zero() -> None:
    schedule = LrSchedule(steps=100, lr=1.0, warmup_steps=10, decay_share=0.4)
    rates = [schedule.rate(step) for step in (0, 9, 30, 60, 80, 99)]
    np.testing.assert_allclose(rates, [0.1, 1, 1, 1, 0.5, 0.025])
    assert schedule.rate(100) == 0


def test_the_rate_can_fall_as_a_cosine() -> None:
    schedule = LrSchedule(steps=100, lr=1.0, warmup_steps=10, decay_share=0.4, decay="cosine")
    np.testing.assert_allclose([schedule.rate(step) for step in (60, 80, 99)], [1, 0.5, 0.0015], atol=1e-3)


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_warm_up_and_decay_can_be_left_out(warmup_steps: int) -> None:
    schedule = LrSchedule(steps=10, lr=0.5, warmup_steps=warmup_steps, decay_share=0.0)
    assert [schedule.rate(step) for step in range(10)] == [0.5] * 10


def test_warm_up_and_decay_may_overlap() -> None:
    schedule = LrSchedule(steps=10, lr=1.0, warmup_steps=10, decay_share=1.0)
    np.testing.assert_allclose([schedule.rate(step) for step in (0, 5, 9)], [0.1, 0.6 * 0.5, 0.1])
