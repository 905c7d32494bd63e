"""The thread budget: BLAS limits of several users at once, ordered results, few of them in memory."""

import threading

import pytest

from pqnet import PQNetError, _threads


def limits():
    return {lib["num_threads"] for lib in _threads._controller().info() if lib["user_api"] == "blas"}


def test_the_smallest_limit_of_those_inside_holds_and_all_is_restored():
    before = limits()
    with _threads.blas_limit(2):
        outer = limits()
        with _threads.blas_limit(1):
            assert limits() == {1}
        assert limits() == outer  # the one who leaves takes the limit along
    assert limits() == before


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_come_in_order_and_few_wait(threads):
    started = []

    def work(i):
        started.append(i)
        return i

    stream = _threads.ordered_map(work, range(100), threads)
    assert [next(stream) for _ in range(5)] == list(range(5))
    assert len(started) <= 5 + threads + 1
    assert list(stream) == list(range(5, 100))


def test_errors_of_workers_reach_the_caller():
    def fail(i):
        raise PQNetError(f"item {i}")

    with pytest.raises(PQNetError, match="item 0"):
        list(_threads.ordered_map(fail, range(3), 2))


def test_models_run_in_several_python_threads_while_kmeans_runs():
    import numpy as np

    import pqnet
    from pqnet.demo import load_images, model_path

    model, images = pqnet.load(model_path()), load_images()[1][:40]
    want, wrong = model(images, threads=1), []

    def run():
        for _ in range(5):
            wrong.append(np.abs(model(images, threads=1) - want).max() > 1e-5)
            pqnet.weighted_kmeans(images.reshape(-1, 8), 16, n_iter=2)

    workers = [threading.Thread(target=run) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(wrong) == 20 and not any(wrong)
