"""Programs: every algorithm for layers against the NumPy meaning of the operation, untouched memory, threads."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import GuardedSpace, untouched

import pqnet
from pqnet.codecs import PackedPQ
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.kernels import simd
from pqnet.runtime.algorithms import ALGORITHMS
from pqnet.runtime.execute import run_graph, values_to_free
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program
from pqnet.runtime.tune import fixed


def packed_weight(rng, shape, d, k, layout):
    blocks = int(np.prod(shape)) // d
    codes = rng.integers(0, k, (shape[0], blocks // shape[0]))
    book = rng.standard_normal((k, d)).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
    return PackedPQ(pqnet.PQ(k, d, layout, "float32"), shape, codes, book)


def divisors(n, most=32):
    return [i for i in range(1, min(n, most) + 1) if n % i == 0]


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    c, o = draw(st.integers(1, 40)), groups * draw(st.integers(1, 24))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 3), (2, 4)]))
    attrs = {
        "stride": draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 1)])),
        "dilation": draw(st.sampled_from([(1, 1), (1, 1), (2, 1)])),
        "padding": tuple(draw(st.integers(0, 2)) for _ in range(4)),
        "groups": groups,
    }
    size = [draw(st.integers(attrs["dilation"][i] * (kernel[i] - 1) + 1, 21)) for i in (0, 1)]
    shape = (o, c, *kernel)
    layout = draw(st.sampled_from(["spatial", "channel"]))
    d = draw(st.sampled_from(divisors(c if layout == "channel" else c * kernel[0] * kernel[1])))
    k = draw(st.sampled_from([1, 2, 7, 16, 256, 257, 4096]))
    k = min(k, o * c * kernel[0] * kernel[1] // d)
    dense = draw(st.integers(0, 5)) == 0
    return (
        draw(st.integers(1, 9)),
        size,
        shape,
        attrs,
        None if dense else (d, k, layout),
        draw(st.integers(0, 2**32 - 1)),
    )


def conv_graph(batch, size, shape, attrs, packed, seed, tail):
    rng = np.random.default_rng(seed)
    weight = (
        rng.standard_normal(shape).astype(np.float32)
        if packed is None
        else packed_weight(rng, shape, packed[0], packed[1], packed[2])
    )
    x = rng.standard_normal((batch, shape[1] * attrs["groups"], *size)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    bias = rng.standard_normal(shape[0]).astype(np.float32)
    y = b.add("conv2d", "x", params={"weight": weight, "bias": bias}, **attrs)
    if tail >= 1:
        names = ("weight", "bias", "mean")
        norm = {role: rng.standard_normal(shape[0]).astype(np.float32) for role in names}
        y = b.add("batch_norm", y, params=norm | {"var": rng.random(shape[0]).astype(np.float32) + 0.5})
    if tail == 2:
        other = b.add("conv2d", "x", params={"weight": rng.standard_normal(shape).astype(np.float32)}, **attrs)
        y = b.add("relu", b.add("add", y, other))
    return b.build({"y": y}), {"x": x}


def reference(graph, inputs):
    return run_graph(graph, values_to_free(graph), inputs)["y"]


def close(got, want):
    return got.shape == want.shape and np.abs(got - want).max() <= 1e-4 * max(np.abs(want).max(), 1e-6)


def check_algorithms(graph, inputs):
    """Compare every algorithm with NumPy, for 1, 2 and 4 threads, bit by bit, and look at the memory around values."""
    want = reference(graph, inputs)
    seen = set()
    for algorithm in ALGORITHMS:
        program = Program(graph, {}, Store(), fixed(algorithm))
        taken = tuple(step.algorithm for _, _, step in program.kernel_steps())
        if taken in seen:
            continue
        seen.add(taken)
        space = GuardedSpace()
        got = program.run(inputs, space, 1)["y"]
        assert close(got, want), algorithm
        assert untouched(program, space.arena), algorithm
        for threads in (2, 4):
            assert np.array_equal(program.run(inputs, Workspace(), threads)["y"], got), algorithm
    return seen


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(convolutions(), st.integers(0, 2))
def test_convolutions_by_every_algorithm(case, tail):
    check_algorithms(*conv_graph(*case, tail))


@settings(max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(1, 80),
    st.integers(1, 90),
    st.sampled_from([1, 3, 16, 256, 300, 4096]),
    st.integers(0, 99),
    st.integers(0, 2**32 - 1),
)
def test_linear_layers_by_every_algorithm(batch, tokens, inputs, outputs, k, pick, seed):
    rng = np.random.default_rng(seed)
    d = divisors(inputs)[pick % len(divisors(inputs))]
    weight = packed_weight(rng, (outputs, inputs), d, min(k, outputs * inputs // d), "spatial")
    x = rng.standard_normal((batch, tokens, inputs)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape)})
    y = b.add("linear", "x", params={"weight": weight, "bias": rng.standard_normal(outputs).astype(np.float32)})
    z = b.add("linear", "x", params={"weight": rng.standard_normal((outputs, inputs)).astype(np.float32)})
    check_algorithms(b.build({"y": b.add("relu", b.add("add", z, y))}), {"x": x})


@pytest.mark.parametrize("outputs, inputs, d, k", [(3072, 768, 8, 256), (1000, 192, 4, 100), (77, 160, 16, 129)])
def test_one_token_by_every_algorithm(outputs, inputs, d, k):
    rng = np.random.default_rng(0)
    weight = packed_weight(rng, (outputs, inputs), d, k, "spatial")
    x = rng.standard_normal((1, inputs)).astype(np.float32)
    b = GraphBuilder({"x": ValueInfo(x.shape), "z": ValueInfo((1, outputs))})
    y = b.add("linear", "x", params={"weight": weight, "bias": rng.standard_normal(outputs).astype(np.float32)})
    inputs = {"x": x, "z": rng.standard_normal((1, outputs)).astype(np.float32)}
    graph = b.build({"y": b.add("gelu", b.add("add", "z", y))})
    check_algorithms(graph, inputs)
    kernels = [step.kernel.name for _, _, step in Program(graph, {}, Store(), fixed("planes")).kernel_steps()]
    assert ("look_up_planes" in kernels) == simd.BYTE_TABLES


def test_large_layers_of_several_pieces():
    """Reductions and outputs that are cut in pieces, planes of 7 x 7 and 14 x 14, batches of 1 and 3."""
    for batch, c, o, size, packed in [
        (1, 520, 136, (7, 7), (8, 256, "channel")),
        (3, 256, 72, (14, 14), (9, 256, "spatial")),
        (1, 256, 300, (14, 14), (18, 256, "spatial")),
        (1, 64, 64, (56, 56), (8, 256, "channel")),
    ]:
        attrs = {"stride": (1, 1), "dilation": (1, 1), "padding": (1, 1, 1, 1), "groups": 1}
        algorithms = check_algorithms(*conv_graph(batch, size, (o, c, 3, 3), attrs, packed, 0, 2))
        assert len(algorithms) > 1  # there was something to compare


SCRIPT = """
import test_engine as t
small = dict(stride=(1, 1), dilation=(1, 1), padding=(1, 1, 1, 1), groups=1)
cases = [
    (2, (5, 9), (7, 6, 3, 3), small, (6, 16, "channel"), 1),
    (1, (6, 6), (9, 4, 3, 3), small, (9, 30, "spatial"), 2),
    (2, (7, 5), (6, 4, 3, 3), dict(small, stride=(2, 2), groups=2), (2, 12, "channel"), 3),
    (1, (4, 4), (10, 12, 1, 1), dict(small, padding=(0, 0, 0, 0)), (4, 20, "spatial"), 4),
]
for case in cases:
    t.check_algorithms(*t.conv_graph(*case, 1))
from pqnet.kernels import simd
print(simd.ISA)
"""


@pytest.mark.parametrize("settings_", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings_):
    isa = run_forced(SCRIPT, settings_)
    assert isa == settings_.get("PQNET_SIMD", isa)


STRESS = """
import threading
import numpy as np
import pqnet
from pqnet.demo import load_images, model_path

images = load_images()[1]
models = [pqnet.load(model_path()) for _ in range(2)]
want = [models[0](images[i : i + 3], threads=1) for i in range(16)]
wrong = []

def work(i):
    for call in range(200):
        got = models[(i + call) % 2](images[i : i + 3], threads=1 + call % 3)
        if not np.array_equal(got, want[i]):
            wrong.append((i, call))

workers = [threading.Thread(target=work, args=(i,)) for i in range(16)]
[w.start() for w in workers]
[w.join() for w in workers]
assert not wrong, wrong[:5]
print("right")
"""


def test_sixteen_threads_call_two_models():
    run = subprocess.run([sys.executable, "-c", STRESS], capture_output=True, text=True, timeout=600)
    assert run.stdout.strip() == "right", run.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_runs_models_of_its_parent():
    code = """
import os, sys
import numpy as np
import pqnet
from pqnet.demo import load_images, model_path
model, images = pqnet.load(model_path()), load_images()[1][:64]
want = model(images, threads=2)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(model(images, threads=2), want) else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert np.array_equal(model(images, threads=2), want)
print("right")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "right", run.stderr


def test_a_model_gives_new_arrays_and_forgets_nothing_between_shapes():
    from pqnet.demo import load_images, model_path

    model, images = pqnet.load(model_path()), load_images()[1]
    first = model(images[:5])
    kept = first.copy()
    for batch in (1, 7, 5, 33, 1):
        np.testing.assert_allclose(model(images[:batch])[:1], kept[:1], rtol=1e-4, atol=1e-5)
    assert np.array_equal(first, kept)
    results = []
    workers = [threading.Thread(target=lambda: results.append(model(images[:5]))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.array_equal(r, kept) for r in results)
