"""Forked and spawned processes, and exceptions of signal handlers, at any moment."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import pqnet
from pqnet.demo import load_images, model_path

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def run_alone(code):
    """Run code in a process of its own with two threads, which is to print ``right``."""
    command, environment = [sys.executable, "-c", textwrap.dedent(code)], os.environ | {"OMP_NUM_THREADS": "2"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert run.stdout.strip() == "right", run.stdout + run.stderr


@needs_fork
def test_children_forked_while_threads_fit_and_limit_blas_can_do_all_of_it():
    run_alone("""
        import os, signal, threading, time
        import numpy as np
        import pqnet
        from pqnet import _threads
        from pqnet.demo import load_images, model_path

        model, images = pqnet.load(model_path()), load_images()[0][:16]
        blocks = np.random.default_rng(0).standard_normal((40_000, 8)).astype(np.float32)

        def work():
            found = pqnet.weighted_kmeans(blocks, 16, n_iter=1, threads=2)
            weight = pqnet.PQ(8, 4).fit(blocks[:64, :8], metric=np.eye(8, dtype=np.float32)[None, None])
            with _threads.blas_limit(1):
                limits = {lib.read() for lib in _threads._libraries()}
            return found.codebook.tobytes() + weight.codes.tobytes() + model(images, threads=2).tobytes(), limits

        def read():
            return [lib.read() for lib in _threads._libraries()]

        before, want, stop = read(), work(), threading.Event()

        def others():
            while not stop.is_set():
                pqnet.weighted_kmeans(blocks, 16, n_iter=1, threads=2)
                list(_threads.ordered_map(lambda i: blocks[:64] @ blocks[:64].T, range(3), 2))

        threads = [threading.Thread(target=others) for _ in range(2)]
        for thread in threads:
            thread.start()
        codes = []
        for i in range(15):
            time.sleep(0.01)
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # a child that waits for ever ends
                os._exit(0 if read() == before and work() == want and read() == before else 1)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        stop.set()
        for thread in threads:
            thread.join()
        assert read() == before and not any(codes), codes
        print("right")
    """)


@needs_fork
def test_a_child_forked_inside_a_blas_limit_keeps_it_until_it_leaves():
    run_alone("""
        import os
        from pqnet import _threads

        def read():
            return {lib.read() for lib in _threads._libraries()}

        before = read()
        with _threads.blas_limit(1):
            child = os.fork()
            inside = read()
        if child == 0:
            os._exit(0 if (inside, read()) == ({1}, before) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print("right")
    """)


@needs_fork
def test_no_child_is_forked_while_another_thread_sets_the_number_of_blas_threads():
    run_alone("""
        import os, threading, time
        from pqnet import _threads

        class Library:
            for_each_thread, inside, process = False, threading.Event(), os.getpid()

            def read(self):
                return 2

            def set(self, number):
                if os.getpid() == self.process:
                    self.inside.set()
                    time.sleep(0.2)
                    self.inside.clear()

        _threads._libraries = lambda: [Library()]

        def limit():
            with _threads.blas_limit(1):
                pass

        thread = threading.Thread(target=limit)
        thread.start()
        Library.inside.wait()
        child = os.fork()
        if child == 0:
            os._exit(Library.inside.is_set())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        thread.join()
        with _threads.blas_limit(1):  # nobody has to wait for a fork that is over
            print("right")
    """)


@needs_fork
def test_a_child_forked_while_another_thread_compiles_can_compile():
    run_alone("""
        import os, signal, threading
        from numba import njit
        from numba.core.compiler_lock import global_compiler_lock
        import pqnet

        taken, done = threading.Event(), threading.Event()

        def compiling():
            with global_compiler_lock:
                taken.set()
                done.wait()

        threading.Thread(target=compiling).start()
        taken.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(njit(lambda x: x + 1)(-1))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        done.set()
        assert code == 0, code
        print("right")
    """)


def fit_and_run(seed):
    """Fit, and run a model, in a process of a pool."""
    weight = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
    return pqnet.PQ(16, 4).fit(weight).codes, pqnet.load(model_path())(load_images()[0][:4], threads=2)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()])
def test_processes_of_multiprocessing_fit_and_run_what_their_parent_did(method):
    wants = [fit_and_run(seed) for seed in range(2)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        founds = pool.map_async(fit_and_run, range(2)).get(200)
    for want, found in zip(wants, founds, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(want, found, strict=True))


class Interrupt(BaseException):
    """Raised by the handler of a timer's signal."""


def interrupted(function, times, seed):
    """Call a function again and again, interrupted ``times`` times at random moments of it."""

    def handler(*_):
        raise Interrupt

    rng, before = np.random.default_rng(seed), signal.signal(signal.SIGALRM, handler)
    function()
    start = time.perf_counter()
    function()
    longest, cut = max(time.perf_counter() - start, 2e-5), 0
    try:
        for _ in range(20 * times):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, longest))
                function()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                cut += 1
                if cut == times:
                    break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert cut > times // 4


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")
# Python itself can only report what a signal handler raises while a generator that nobody needs any more is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("what", ["model", "token", "kmeans", "quantize", "ordered_map"])
def test_results_are_right_after_many_interrupts(what):
    from test_threads import limits, token_model

    images = load_images()[0]
    if what == "model":
        model = pqnet.load(model_path())
        work, times = (lambda: model(images[:4], threads=3).tobytes()), 150
    elif what == "token":
        token, x, _ = token_model()
        work, times = (lambda: [token(x, threads=3).tobytes() for _ in range(5)]), 300
    elif what == "kmeans":
        blocks = images.reshape(-1, 8)[:20_000]
        work, times = (lambda: pqnet.weighted_kmeans(blocks, 32, n_iter=3, threads=3).codebook.tobytes()), 40
    elif what == "quantize":
        float_model, recipe = pqnet.load(model_path()), {"fc": pqnet.PQ(16, 4), "default": None}
        options = {"calibration": images[:8], "threads": 3, "progress": False}
        work, times = (lambda: pqnet.quantize(float_model, recipe, **options)(images[:2]).tobytes()), 15
    else:
        squares = [images[i : i + 16].reshape(16, -1) for i in range(16)]
        work, times = (lambda: list(pqnet._threads.ordered_map(lambda a: (a @ a.T).tobytes(), squares, 3))), 150
    before, want = limits(), work()
    interrupted(work, times, 0)
    assert work() == want
    assert limits() == before
    assert work() == want
