"""Times the table kernels standalone against np.dot and the multiply-add peak of a core.

Usage: OPENBLAS_NUM_THREADS=1 python bench/lab/lut_lab.py [vector] [rows]
"""

import sys
import time

import numpy as np
from numba import njit
from pqnet.kernels.program import STATE_WORDS, kernel_address, run_steps
from pqnet.runtime.lower.lut import lut_codes, plan_lut, plan_rows, rows_codebook, rows_codes

from pqnet.kernels.lut import lut
from pqnet.kernels.lut_rows import fill_tables, look_up_outputs
from pqnet.kernels.simd import WIDTH, fma, splat, store
from pqnet.runtime.builder import aligned

RNG = np.random.default_rng(0)


@njit(error_model="numpy")
def spin(n, out):
    a = splat(np.float32(1.0001))
    b, c, d, e, f, g, h, i, j, k, p, m = a, a, a, a, a, a, a, a, a, a, a, a
    for _ in range(n):
        b, c, d, e = fma(a, b, a), fma(a, c, a), fma(a, d, a), fma(a, e, a)
        f, g, h, i = fma(a, f, a), fma(a, g, a), fma(a, h, a), fma(a, i, a)
        j, k, p, m = fma(a, j, a), fma(a, k, a), fma(a, p, a), fma(a, m, a)
    for at, v in enumerate((b, c, d, e, f, g, h, i, j, k, p, m)):
        store(out, at * WIDTH, v)


def best(function, seconds=0.3):
    """Return the shortest time of a call in milliseconds."""
    function()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def peak():
    """Return vector multiply-adds a millisecond."""
    out = np.zeros(12 * WIDTH, np.float32)
    return 12 * 20000 / best(lambda: spin(20000, out))


class Layer:
    """A k x k convolution (stride 1, same padding) of one image, or a product with ``size`` positions."""

    def __init__(self, c, o, size, kernel=3, k=256, d=8, **plan_options):
        self.c, self.o, self.k, self.d = c, o, k, d
        pad = kernel // 2
        pitch = size + pad  # the margin on the right of a row is that on the left of the next
        height = size if kernel > 1 else 1
        plane = (height + 2 * pad) * pitch + 2 * pad
        self.data = aligned(c * plane + o * height * size + 128, np.float32)
        self.data[: c * plane] = RNG.standard_normal(c * plane)
        self.taps = np.array([y * pitch + x for y in range(kernel) for x in range(kernel)])
        self.plan = p = plan_lut(np.arange(c) * plane, self.taps, k, d, o, 1, height, size, pitch, **plan_options)
        self.book = RNG.standard_normal((k, d)).astype(np.float32)
        stride = 4 if d <= 4 else 8 if d <= 8 else -(-d // 16) * 16
        words = np.zeros((k + 8, stride), np.float32)
        words[:k, :d] = self.book
        self.const = aligned(words.size + 64, np.float32)
        self.const[: words.size] = words.reshape(-1)
        self.codes = RNG.integers(0, k, (o, len(self.taps) * (c // d))).astype(np.uint8 if k <= 256 else np.uint16)
        flat_codes = lut_codes(self.codes, 1, p)
        self.code_bytes = aligned(flat_codes.size + 64, np.uint8)
        self.code_bytes[: flat_codes.size] = flat_codes
        parts = [p.rows, p.tables.reshape(-1), p.groups.reshape(-1), p.steps.reshape(-1)]
        at = np.cumsum([0, *(part.size for part in parts)])
        self.index = np.concatenate(parts).astype(np.int32)
        image = height * size
        self.image, self.out = image, c * plane
        self.g = np.zeros((1, 48), np.int64)
        shared = [0, 0, 0, 0, c * kernel**2, o, 1, 1, 0, pitch, size, self.out, image, image, size, -1, -1, -1]
        self.g[0, : len(shared)] = shared
        size, mask = self.codes.itemsize, (1 << 8 * self.codes.itemsize) - 1
        own = [0, 0, d, stride, -(-k // 8) * 8, mask, size, p.blocks, 0, p.in_pass, p.taps]
        own += [at[1], len(p.tables), at[2], len(p.groups), at[3], *p.own]
        self.g[0, 24:] = own
        self.scratch = aligned(p.scratch + 64, np.float32)
        self.kernels, self.tasks = np.array([kernel_address(lut)]), np.array([p.tasks])
        self.macs = o * c * kernel**2 * image

    def run(self):
        state = np.zeros(STATE_WORDS, np.int64)
        arrays = self.data, self.const, self.code_bytes, self.index, self.scratch
        run_steps(self.kernels, self.tasks, self.g, 1, *arrays, state)

    def check(self):
        self.run()
        got = self.data[self.out : self.out + self.o * self.image].reshape(self.o, -1)
        weight = self.book[self.codes].reshape(self.o, -1)  # (o, tap, c)
        g = self.g[0]
        q = (np.arange(self.image) // g[10]) * g[9] + np.arange(self.image) % g[10]
        at = (self.taps[:, None] + np.arange(self.c) * (self.out // self.c)).reshape(-1)
        x = self.data[at[:, None] + q]
        want = weight @ x
        error = np.abs(got - want).max() / np.abs(want).max()
        dot = best(lambda: weight @ x)
        return error, dot


SHAPES = [
    (256, 256, 14, 3), (512, 512, 7, 3), (128, 128, 28, 3), (64, 64, 56, 3),
    (256, 1024, 196, 1), (512, 2048, 49, 1), (768, 3072, 128, 1), (3072, 768, 128, 1), (512, 2048, 64, 1),
]  # fmt: skip


class Rows:
    """A product with a few positions."""

    def __init__(self, inputs, outputs, positions=1, k=256, d=8):
        m = inputs // d
        self.plan = p = plan_rows(m, k, d, outputs, 1, positions)
        self.book = RNG.standard_normal((k, d)).astype(np.float32)
        self.codes = RNG.integers(0, k, (outputs, m)).astype(np.uint8 if k <= 256 else np.uint16)
        self.const = aligned(p.words * d + 64, np.float32)
        self.const[: p.words * d] = rows_codebook(self.book).reshape(-1)
        codes = rows_codes(self.codes, 1)
        self.code_bytes = aligned(codes.size + 64, np.uint8)
        self.code_bytes[: codes.size] = codes
        self.index = (np.arange(inputs) * positions).astype(np.int32)
        x, out = inputs * positions, outputs * positions
        self.data = aligned(x + out + p.floats + 80, np.float32)
        self.data[:x] = RNG.standard_normal(x)
        self.g = np.zeros((2, 48), np.int64)
        shared = [0, 0, 0, 0, inputs, outputs, 1, 1, *[positions] * 3, x, *[positions] * 3]
        self.g[:, : len(shared)] = shared
        self.g[:, 15:19] = -1
        tables = -(-(x + out) // 16) * 16
        self.g[0, 24:32] = [1, 0, *p.filled, tables]
        self.g[1, 24:33] = [0, *p.looked_up, tables]
        self.scratch = aligned(p.scratch + 64, np.float32)
        self.kernels = np.array([kernel_address(fill_tables), kernel_address(look_up_outputs)])
        self.tasks = np.array([p.fill_tasks, p.tasks])
        self.shape = inputs, outputs, positions

    def run(self, steps=2):
        state = np.zeros(STATE_WORDS, np.int64)
        arrays = self.data, self.const, self.code_bytes, self.index, self.scratch
        run_steps(self.kernels, self.tasks, self.g, steps, *arrays, state)

    def check(self):
        self.run()
        inputs, outputs, positions = self.shape
        x = self.data[: inputs * positions].reshape(inputs, positions)
        got = self.data[inputs * positions :][: outputs * positions].reshape(outputs, positions)
        weight = self.book[self.codes].reshape(outputs, -1)
        want = weight @ x
        dot = best(lambda: weight @ x)
        return np.abs(got - want).max() / np.abs(want).max(), dot


ROWS = [(768, 3072, 1), (3072, 768, 1), (2048, 1000, 1), (768, 3072, 2), (768, 3072, 4)]


def vector():
    rate = peak()
    print(f"{rate / 1e3:.2f} G vector fma/s = {rate * 1e3 * WIDTH * 2 / 1e9:.0f} GFLOP/s")
    for c, o, size, kernel in SHAPES:
        layer = Layer(c, o, size, kernel)
        error, dot = layer.check()
        ms = best(layer.run)
        dense = layer.macs / WIDTH / rate
        p = layer.plan
        print(
            f"{c}->{o} {size} k{kernel}: lut {ms:.3f} ms, peak {dense:.3f}, np.dot {dot:.3f}; "
            f"lut/peak {ms / dense:.2f} model {p.cost / rate:.3f} "
            f"tasks {p.tasks} V {p.own[2]} lane pitch {p.own[1]} in_pass {p.in_pass} "
            f"tables {p.tables.tolist()} shifts {len(p.groups)} err {error:.1e}"
        )


def rows():
    for inputs, outputs, positions in ROWS:
        layer = Rows(inputs, outputs, positions)
        error, dot = layer.check()
        us, fill = 1e3 * best(layer.run), 1e3 * best(lambda layer=layer: layer.run(1))
        codes = layer.codes.size * positions
        p = layer.plan
        print(
            f"{inputs}->{outputs} x{positions}: {us:.1f} us of which tables {fill:.1f}; "
            f"{(us - fill) * 1e3 / codes:.3f} ns a look-up, np.dot {dot * 1e3:.1f} us, "
            f"tasks {p.fill_tasks} + {p.tasks}, model {p.cost / 2.4e3:.1f} us, err {error:.1e}"
        )


if __name__ == "__main__":
    for name in sys.argv[1:] or ("vector", "rows"):
        {"vector": vector, "rows": rows}[name]()
