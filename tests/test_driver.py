"""The driver: every task of every step is run once, whichever threads take tasks from which end."""

import threading

import numpy as np
import pytest
from numba import njit

from pqnet.kernels import driver
from pqnet.kernels.abi import DATA, Arguments, step
from pqnet.kernels.llvm import COMPILED

COUNT = Arguments(counts=DATA)


@step(COUNT)
@njit(nogil=True, error_model="numpy", _nrt=False)
def count(task, g, data, const, codes, index, scratch):
    # Whether this task was run before, and by which thread it was run
    data[2 * (g.counts + task)] += 1
    data[2 * (g.counts + task) + 1] = scratch[0]


def run(tasks, directions):
    """Run steps of these numbers of tasks, a thread for each direction; return counts and threads by task."""
    tasks, starts = np.array(tasks), np.cumsum([0, *tasks])
    records = [COUNT.record({"counts": start}) for start in starts[:-1]]
    addresses = [count.address()] * len(tasks)
    if COMPILED:
        addresses, kept = np.array(addresses), records
        records = np.array([record.__array_interface__["data"][0] for record in kept])
    data, state = np.zeros(2 * starts[-1], np.float32), np.zeros(driver.STATE_WORDS, np.int64)
    nothing = np.zeros(1, np.float32), np.zeros(1, np.uint8), np.zeros(1, np.int64)
    steps = addresses, tasks, np.zeros_like(tasks), records, len(tasks), data, *nothing

    def work(place, backward):
        driver.run_steps(*steps, np.full(1, place, np.float32), state, backward)

    threads = [threading.Thread(target=work, args=(i + 1, backward)) for i, backward in enumerate(directions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert state[driver.TICKET] >> driver.STEP == len(tasks)
    return data[::2], data[1::2]


MOST = 1 << driver.MANY  # tasks that are taken one by one


@pytest.mark.parametrize("directions", [(0,), (1,), (0, 1), (0, 1, 0, 1)])
@pytest.mark.parametrize("tasks", [(1, 2, 7, 1), (3,) * 400, (MOST - 1, 2), (MOST, 1), (MOST + 1,), (3 * MOST - 7, 5)])
def test_every_task_runs_once(tasks, directions):
    if max(tasks) > 10 and not COMPILED:
        pytest.skip("without a compiler this takes minutes")
    counts, threads = run(tasks, directions)
    assert (counts == 1).all()
    assert set(threads.tolist()) <= set(range(1, len(directions) + 1))


def test_two_threads_share_a_step_in_two_ranges():
    """What one thread computed step after step lies in the caches of one core."""
    for _ in range(20):
        _, threads = run((64,) * 20, (0, 1))
        for step_threads in threads.reshape(20, 64):
            assert np.abs(np.diff(step_threads)).sum() <= 1 and (np.diff(step_threads) >= 0).all()
