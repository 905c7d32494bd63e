"""The thread budget: BLAS limits of several users at once, ordered results, few of them in memory."""

import gc
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

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


def token_model(seed=0):
    """Return a model of one layer large enough for two threads, its input and what NumPy gives."""
    import numpy as np

    import pqnet
    from pqnet.codecs import PackedPQ
    from pqnet.graph import GraphBuilder, ValueInfo

    rng = np.random.default_rng(seed)
    book = rng.standard_normal((256, 8)).astype(np.float32)
    weight = PackedPQ(pqnet.PQ(256, 8, "spatial", "float32"), (2000, 768), rng.integers(0, 256, (2000, 96)), book)
    x = rng.standard_normal((1, 768)).astype(np.float32)
    builder = GraphBuilder({"x": ValueInfo(x.shape)})
    model = pqnet.Model(builder.build({"y": builder.add("linear", "x", params={"weight": weight})}))
    return model, x, x @ weight.decode().T


def test_many_short_calls_of_several_threads_share_the_helpers():
    """The helpers come late, sleep, are taken by another caller: outputs are right, and few threads are left."""
    import numpy as np

    models = [token_model(seed) for seed in range(3)]
    wants = [model(x, threads=1) for model, x, _ in models]
    for got, (_, _, want) in zip(wants, models, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-3)
    wrong = []

    def run(first):
        for call in range(600):
            i = (first + call) % 3
            if not np.array_equal(models[i][0](models[i][1], threads=1 + call % 4), wants[i]):
                wrong.append((first, call))
            if call % 50 == 0:
                time.sleep(0.002)  # long enough for the helpers to fall asleep

    workers = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert not wrong and not any(worker.is_alive() for worker in workers)
    helpers = [thread for thread in threading.enumerate() if thread.name.startswith("pqnet_")]
    assert len(helpers) <= max(3, _threads.default_threads() - 1)


def test_sleeping_helpers_keep_no_model_alive():
    model, x, _ = token_model()
    for _ in range(50):
        model(x, threads=2)
    program = weakref.ref(next(iter(model._engine._programs.values())).result())
    del model
    gc.collect()
    for _ in range(200):
        if program() is None:
            break
        time.sleep(0.01)
        gc.collect()
    assert program() is None


def test_a_process_that_ends_right_after_a_run_ends_well():
    code = "import test_threads as t; m, x, _ = t.token_model(); [m(x, threads=3) for _ in range(100)]"
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, timeout=60)
