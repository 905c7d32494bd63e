"""Threads: BLAS limits of several users at once, the pools, ordered results, few of them in memory."""

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import pqnet
from pqnet import PQNetError, _threads
from pqnet.codecs import PackedPQ
from pqnet.demo import load_images, model_path
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.kernels.driver import ASLEEP, CPU, DOES, SLOT_WORDS, THREAD, run_job
from pqnet.kernels.sleep import SET_WORDS, without_cpu
from pqnet.runtime import threads


def limits():
    return {lib["num_threads"] for lib in _threads._controller().info() if lib["user_api"] == "blas"}


@pytest.mark.usefixtures("two_blas_threads")
def test_the_smallest_limit_of_those_inside_holds_and_all_is_restored():
    before = limits()
    assert before == {2}
    with _threads.blas_limit(2):
        outer = limits()
        with _threads.blas_limit(1):
            assert limits() == {1}
        assert limits() == outer  # the one who leaves takes the limit along
    assert limits() == before


def in_thread(function):
    """Return what a function gives on another thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("two_blas_threads")
def test_a_limit_holds_whichever_thread_sets_it():
    before = limits()

    def limited():
        with _threads.blas_limit(1):
            return limits()

    with _threads.blas_limit(2):
        outer = limits()  # this thread was the first to set a number
        assert in_thread(limited) == {1}
        assert limits() == outer
    assert in_thread(limited) == {1}
    assert limits() == before


def test_threads_that_quantize_at_once_give_the_bytes_of_one_alone(tmp_path):
    model, images = pqnet.load(model_path()), load_images()[0][:60]

    def quantized(name, threads=2):
        recipe = {"layer1.0.conv1": pqnet.PQ(32, 9), "default": None}
        pqnet.quantize(model, recipe, images, threads=threads, progress=False).save(tmp_path / name)
        return (tmp_path / name).read_bytes()

    alone, found = quantized("alone"), []
    workers = [threading.Thread(target=lambda i=i: found.append(quantized(f"{i}", 1 + i))) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 2 and all(file == alone for file in found)


def test_calls_of_many_threads_within_calls_see_all_chunks():
    """More callers than the pool has threads, each inside a call of its own: nobody waits for a free thread."""
    done = []

    def share():
        chunks, lock = iter(range(50)), threading.Lock()

        def inner():
            while True:
                with lock:
                    if next(chunks, None) is None:
                        return
                done.append(1)

        _threads.call_on_threads(inner, 3)

    def outer():
        _threads.call_on_threads(share, 4)  # this thread, and others that are free

    workers = [threading.Thread(target=outer) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert len(done) >= 8 * 50 and len(done) % 50 == 0


def test_an_error_on_any_thread_reaches_the_caller():
    both = threading.Barrier(2)

    def fail_elsewhere():
        both.wait(10)
        if threading.current_thread() is not threading.main_thread():
            raise PQNetError("elsewhere")

    with pytest.raises(PQNetError, match="elsewhere"):
        _threads.call_on_threads(fail_elsewhere, 2)


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


def mapped(cut, threads):
    list(_threads.ordered_map(cut, range(6), threads))


def until_done(cut, _):
    calls = iter(range(6))
    _threads.until_done(lambda: [cut(call) for call in calls])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("where", range(6))
@pytest.mark.parametrize("what", [mapped, until_done])
def test_an_interrupt_leaves_nothing_behind_once_it_is_handled(what, where, threads):
    """Not even until cycles are collected: a limit of BLAS threads would hold until then."""

    class Mark:
        """What a call that was cut off still held."""

    marks = []

    def cut(item):
        mark = Mark()
        marks.append(weakref.ref(mark))
        if item == where:
            raise KeyboardInterrupt

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            what(cut, threads)
        assert marks
        assert not [mark for mark in marks if mark() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("end", ["error", "close"])
def test_nothing_runs_after_an_ordered_map_that_ends_early(end):
    running = set()

    def work(i):
        running.add(i)
        time.sleep(0.01)
        if end == "error" and i == 5:
            raise PQNetError("five")
        running.discard(i)
        return i

    stream = _threads.ordered_map(work, range(100), 3)
    if end == "error":
        with pytest.raises(PQNetError, match="five"):
            list(stream)
        assert running == {5}
    else:
        next(stream)
        stream.close()
        assert not running


def test_an_ordered_map_within_one():
    def outer(i):
        return list(_threads.ordered_map(lambda j: (i, j), range(4), 2))

    assert list(_threads.ordered_map(outer, range(20), 3)) == [[(i, j) for j in range(4)] for i in range(20)]


def test_models_run_in_several_python_threads_while_kmeans_runs():
    model, images = pqnet.load(model_path()), load_images()[1][:40]
    want, wrong = model(images, threads=1), []

    def run():
        for _ in range(5):
            wrong.append(np.abs(model(images, threads=1) - want).max() > 1e-5)
            pqnet.weighted_kmeans(images.reshape(-1, 8), 16, n_iter=2, threads=2)

    workers = [threading.Thread(target=run) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(wrong) == 20 and not any(wrong)


def token_model(seed=0):
    """Return a model of one layer large enough for two threads, its input and what NumPy gives."""
    rng = np.random.default_rng(seed)
    book = rng.standard_normal((256, 8)).astype(np.float32)
    weight = PackedPQ(pqnet.PQ(256, 8, "spatial", "float32"), (2000, 768), rng.integers(0, 256, (2000, 96)), book)
    x = rng.standard_normal((1, 768)).astype(np.float32)
    builder = GraphBuilder({"x": ValueInfo(x.shape)})
    model = pqnet.Model(builder.build({"y": builder.add("linear", "x", params={"weight": weight})}))
    return model, x, x @ weight.decode().T


def pool_workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("pqnet_worker_")]


def wait_until(done):
    for _ in range(2000):
        if done():
            return
        time.sleep(0.005)
    raise AssertionError("it does not happen")


def test_many_short_calls_of_several_threads_share_the_workers():
    """The workers come late, sleep, are taken by another caller: outputs are right, and few threads are left."""
    before = len(pool_workers())  # that other tests wanted
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
                time.sleep(0.002)  # long enough for the workers to fall asleep

    workers = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert not wrong and not any(worker.is_alive() for worker in workers)
    assert len(pool_workers()) <= max(3, before, _threads.default_threads() - 1)


def cpu_set(cpus):
    words = [sum(1 << cpu % 64 for cpu in cpus if cpu // 64 == i) for i in range(SET_WORDS)]
    return np.array(words, np.uint64).view(np.int64)


@pytest.mark.parametrize(
    ("cpus", "cpu", "want"),
    [
        ({0, 1}, 0, {1}),
        ({3, 63, 64, 1023}, 63, {3, 64, 1023}),
        ({63, 64}, 64, {63}),
        ({5}, 5, {5}),  # the only one
        ({0, 1}, 2, {0, 1}),  # not one of them
        ({0, 1}, -1, {0, 1}),
        ({0, 1}, 1024, {0, 1}),
    ],
)
def test_a_cpu_is_taken_out_of_a_set_that_has_others(cpus, cpu, want):
    words = cpu_set(cpus)
    assert without_cpu(words, 0, cpu) == (want != cpus)
    np.testing.assert_array_equal(words, cpu_set(want))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() < 2, reason="one CPU, or no sets of them")
def test_a_sleeping_worker_wakes_on_another_cpu_than_its_callers():
    # Virtual machines put it beside the caller, where the two take turns of milliseconds.
    model, x, _ = token_model()
    model(x, threads=2)
    worker, mine = threads.thread_pool()._workers[0], threading.get_native_id()
    slot, allowed = worker._slots[:SLOT_WORDS], os.sched_getaffinity(0)
    try:
        for cpu in sorted(allowed)[:2]:
            for thread in (mine, slot[THREAD]):
                os.sched_setaffinity(thread, {cpu})
            model(x, threads=2)  # both are on one CPU
            wait_until(lambda: slot[DOES] == ASLEEP)
            os.sched_setaffinity(slot[THREAD], allowed)
            model(x, threads=2)
            wait_until(lambda: slot[DOES] == ASLEEP)
            assert slot[CPU] in allowed - {cpu}
            assert os.sched_getaffinity(slot[THREAD]) == allowed
    finally:
        for thread in (mine, slot[THREAD]):
            os.sched_setaffinity(thread, allowed)


def test_sleeping_workers_keep_no_model_alive():
    model, x, _ = token_model()
    for _ in range(50):
        model(x, threads=2)
    program = weakref.ref(next(iter(model._engine._programs.values())))
    del model
    gc.collect()
    for _ in range(200):
        if program() is None:
            break
        time.sleep(0.01)
        gc.collect()
    assert program() is None


def test_workers_that_have_left_a_job_keep_nothing_of_it(monkeypatch):
    # A worker that was slow to leave may be gone when its caller hears of it, and the other workers never had the job.
    model, x, _ = token_model()
    model(x, threads=2)
    time.sleep(0.1)  # the workers fall asleep
    monkeypatch.setattr(threads, "run_job", lambda *args: run_job(*args) or 1)
    model(x, threads=1)
    assert not any(worker.leaving for worker in threads.thread_pool()._workers)


def test_a_process_that_ends_right_after_a_run_ends_well():
    code = "import test_threads as t; m, x, _ = t.token_model(); [m(x, threads=3) for _ in range(100)]"
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, timeout=60)
