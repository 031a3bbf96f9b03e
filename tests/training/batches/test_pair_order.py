from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emuedit.training.batches.pair_order import PairOrder, PairOrderError, apportion

N_TASKS, N_BUCKETS = 4, 3


def make_order(task: Any, bucket: Any = None, batch_size: int = 4, **changes: Any) -> PairOrder:
    task = np.array(task, np.int16)
    bucket = np.zeros(len(task), np.int16) if bucket is None else np.array(bucket, np.int16)
    arguments = {"task_balance": 1.0, "task_weights": (1.0,) * N_TASKS, "seed": 0} | changes
    return PairOrder(task, bucket, batch_size, **arguments)


def positions(order: PairOrder, steps: Any) -> NDArray[np.int64]:
    """Positions of all samples of some steps."""
    return np.concatenate([order.batch(step)[0] for step in steps])


def random_cells(seed: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    return random.integers(0, N_TASKS, n), random.integers(0, N_BUCKETS, n)


@pytest.mark.slow
@settings(max_examples=30)
@given(
    seed=st.integers(0, 100), n=st.integers(1, 40), batch_size=st.integers(1, 8), balance=st.sampled_from([0.0, 0.5, 1.0]),
    n_steps=st.integers(1, 60),
)  # fmt: skip
def test_within_a_cell_every_pair_is_used_equally_often_at_any_step(
    seed: int, n: int, batch_size: int, balance: float, n_steps: int
) -> None:
    """To be exact, at any end of an epoch and at any step in a pass: the counts differ by one at most."""
    task, bucket = random_cells(seed, n)
    order = make_order(task, bucket, batch_size, task_balance=balance, seed=seed)
    uses = np.zeros(n, int)
    for step in range(n_steps):
        chosen = order.batch(step)[0]
        assert len(chosen) == batch_size
        assert len(set(bucket[chosen])) == 1, "a batch has one size"
        np.add.at(uses, chosen, 1)
        for cell in set(zip(task, bucket, strict=True)):
            uses_in_cell = uses[(task == cell[0]) & (bucket == cell[1])]
            assert uses_in_cell.max() - uses_in_cell.min() <= 1


def test_with_one_size_every_pair_of_a_task_is_used_once_before_any_is_repeated() -> None:
    order = make_order([0] * 10 + [1] * 6, batch_size=4)
    assert order.batches_per_epoch == 4
    assert sorted(positions(order, range(4))) == list(range(16))
    assert sorted(positions(order, range(4, 8))) == list(range(16))
    assert positions(order, range(4)).tolist() != positions(order, range(4, 8)).tolist()


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_tasks_are_drawn_in_proportion_to_their_balanced_pairs_and_weights(balance: float) -> None:
    task = np.repeat([0, 1, 3], [30, 5, 2])
    weights = (1.0, 2.0, 7.0, 0.5)  # no pair has task 2
    order = make_order(task, batch_size=8, task_balance=balance, task_weights=weights)
    share = np.array([30**balance, 2 * 5**balance, 0, 0.5 * 2**balance])
    for n_steps in (4, 40, 1000):  # after every epoch of 4 steps
        counts = np.bincount(task[positions(order, range(n_steps))], minlength=4)
        np.testing.assert_allclose(counts, share / share.sum() * 8 * n_steps, atol=1.0)


def test_no_task_is_too_rare_to_be_drawn() -> None:
    task = np.repeat([0, 1], [1000, 1])
    order = make_order(task, batch_size=4, task_balance=1.0)
    assert order.batches_per_epoch == 250
    drawn = positions(order, range(2500))
    assert (drawn == 1000).sum() == 10


def test_a_task_of_weight_zero_is_never_drawn() -> None:
    task = np.repeat([0, 1], [5, 5])
    assert set(task[positions(make_order(task, task_weights=(0.0, 1.0, 1.0, 1.0)), range(50))]) == {1}


def test_tasks_are_spread_evenly_over_the_epoch() -> None:
    task = np.repeat([0, 1], [300, 100])
    order = make_order(task, batch_size=8)
    counts = [np.bincount(task[order.batch(step)[0]])[1] for step in range(order.batches_per_epoch)]
    assert {*counts} <= {0, 1, 2, 3, 4}
    assert np.var(counts) < 0.6 * 8 * 0.25 * 0.75, "less than if tasks were drawn independently"


@pytest.mark.slow
def test_buckets_get_batches_in_proportion_to_their_pairs_and_all_pairs_of_a_task_count_alike() -> None:
    task, bucket = random_cells(7, 200)
    order = make_order(task, bucket, batch_size=8, task_balance=0.5)
    uses = np.bincount(positions(order, range(2000)), minlength=200)
    for number in range(N_TASKS):
        of_task = uses[task == number]
        np.testing.assert_allclose(of_task, of_task.mean(), rtol=0.03)
    order_in_first_epoch = [bucket[order.batch(step)[0][0]] for step in range(order.batches_per_epoch)]
    assert order_in_first_epoch != sorted(order_in_first_epoch), "buckets are mixed"


@pytest.mark.slow
@given(seed=st.integers(0, 20), steps=st.lists(st.integers(0, 500), min_size=1, max_size=10))
@settings(max_examples=20)
def test_a_batch_depends_on_seed_and_step_alone(seed: int, steps: list[int]) -> None:
    task, bucket = random_cells(seed, 50)
    sequential = make_order(task, bucket, task_balance=0.5, seed=seed)
    batches = {step: sequential.batch(step) for step in range(max(steps) + 1)}
    resumed = make_order(task, bucket, task_balance=0.5, seed=seed)
    for step in steps:
        for array, other in zip(resumed.batch(step), batches[step], strict=True):
            np.testing.assert_array_equal(array, other)


def test_other_seeds_give_other_orders_and_half_of_the_samples_are_mirrored() -> None:
    task = np.zeros(100, int)
    first, second = (make_order(task, seed=seed) for seed in (1, 2))
    assert positions(first, range(25)).tolist() != positions(second, range(25)).tolist()
    flips = np.concatenate([first.batch(step)[1] for step in range(500)])
    assert 0.45 < flips.mean() < 0.55
    assert first.batch(0)[1].tolist() != first.batch(25)[1].tolist()


def test_a_step_of_a_planned_epoch_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    order = make_order(np.zeros(1000, int))
    order.batch(0)
    monkeypatch.setattr(order, "_plan", lambda epoch: pytest.fail("the epoch was planned again"))
    positions(order, range(250))


@pytest.mark.parametrize("weights", [(0.0, 0.0, 1.0, 1.0), (0.0,) * 4])
def test_weights_that_leave_nothing_to_draw_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(PairOrderError, match="want a task weight > 0 for a task with pairs"):
        make_order([0, 1, 1], task_weights=weights)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_no_weights_are_refused(weight: float) -> None:
    with pytest.raises(PairOrderError, match=r"finite and >= 0, got \[1.0, "):
        make_order([0, 1, 1], task_weights=(1.0, weight, 1.0, 1.0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # which a thread of another test may do
@given(shares=st.lists(st.integers(1, 2**40), min_size=1, max_size=8), n=st.integers(0, 10**6))
@settings(max_examples=200)
def test_apportioning_is_exact_and_never_takes_back(shares: list[int], n: int) -> None:
    counts, next_counts = apportion(shares, n), apportion(shares, n + 1)
    assert sum(counts) == n
    assert sorted(after - before for before, after in zip(counts, next_counts, strict=True)) == [0] * (len(shares) - 1) + [1]
    assert all(abs(count - n * share / sum(shares)) <= len(shares) for count, share in zip(counts, shares, strict=True))


def test_apportioning_rounds_to_the_nearest_and_then_by_the_time_at_which_the_next_is_due() -> None:
    assert apportion([6, 3, 1], 20) == [12, 6, 2]
    assert apportion([53, 24, 23], 7) == [3, 2, 2]  # rounded 4, 2, 2; latest due is the fourth of 53, at 3.5 / 53
    assert apportion([1, 1, 1], 2) == [1, 1, 0]
