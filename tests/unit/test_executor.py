"""The executor: the order of the items, real concurrency, and the first failure."""

from __future__ import annotations

import threading
import time

import pytest

from metier.base.executor import LocalExecutor


@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    assert LocalExecutor(workers).map(lambda n: n * n, range(50)) == [n * n for n in range(50)]
    assert LocalExecutor(workers).map(lambda n: n, []) == []


def test_as_many_work_at_once_as_it_has_workers() -> None:
    meeting = threading.Barrier(4)  # breaks unless four threads reach it together
    assert LocalExecutor(4).map(lambda n: meeting.wait(timeout=30) >= 0 and n, range(8)) == list(range(8))


def test_one_worker_is_the_calling_thread() -> None:
    assert set(LocalExecutor().map(lambda _: threading.get_ident(), range(3))) == {threading.get_ident()}


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_failure_in_order_is_raised_and_nothing_runs_on(workers: int) -> None:
    begun = []

    def work(n: int) -> int:
        begun.append(n)
        if n in (2, 5):
            raise ValueError(f"item {n}")
        time.sleep(0.01 if n > 5 else 0)
        return n

    with pytest.raises(ValueError, match="item 2"):
        LocalExecutor(workers).map(work, range(1000))
    seen = len(begun)
    assert seen < 1000
    time.sleep(0.1)
    assert len(begun) == seen
