"""One token through one linear layer, 768 -> 3072, d = 8, K = 256: pqnet against a dense product and AQLM's lookup.

``numpy`` is the product of the decoded float32 matrix by BLAS. ``aqlm`` is the way of AQLM's CPU kernel, written anew
from its description: a table of the products of every input group with every codeword, then one table entry added for
each code. Its groups run in parallel and add to the same outputs; here that is done without a race, in two ways, of
which the faster counts: threads over groups with sums of their own, and threads over outputs.

Example: ``python bench/bench_token.py --runs 400``
"""

import argparse

import numba
import numpy as np
import threadpoolctl
from common import emit, interleaved, machine
from nets import Draw
from numba import njit, prange

import pqnet
from pqnet.graph import GraphBuilder, ValueInfo

TOLERANCE = 1e-4


@njit(cache=True, fastmath=True)
def table(x: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    # IN x (M*d,) f4, codebook (K, d) f4; OUT (M, K) f4: products of every group of inputs with every codeword
    return np.dot(x.reshape(-1, codebook.shape[1]), codebook.T)


@njit(cache=True, parallel=True, fastmath=True)
def add_by_groups(lut: np.ndarray, codes: np.ndarray, threads: int) -> np.ndarray:
    # IN lut (M, K) f4, codes (M, O) u1; OUT (O,) f4
    groups, outputs = codes.shape
    partial = np.zeros((threads, outputs), np.float32)
    for t in prange(threads):
        for m in range(t * groups // threads, (t + 1) * groups // threads):
            for o in range(outputs):
                partial[t, o] += lut[m, codes[m, o]]
    return partial.sum(0)


@njit(cache=True, parallel=True, fastmath=True)
def add_by_outputs(lut: np.ndarray, codes: np.ndarray, threads: int) -> np.ndarray:
    # IN lut (M, K) f4, codes (M, O) u1; OUT (O,) f4
    groups, outputs = codes.shape
    out = np.zeros(outputs, np.float32)
    for t in prange(threads):
        for m in range(groups):
            for o in range(t * outputs // threads, (t + 1) * outputs // threads):
                out[o] += lut[m, codes[m, o]]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=768)
    parser.add_argument("--outputs", type=int, default=3072)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    emit("machine", **machine() | {"threads": args.threads})
    numba.set_num_threads(args.threads)
    draw = Draw(0)
    weight = draw.packed((args.outputs, args.inputs), 8, "channel", 1)
    x = draw.rng.standard_normal(args.inputs, np.float32)
    builder = GraphBuilder({"x": ValueInfo((1, args.inputs))})
    model = pqnet.Model(builder.build({"y": builder.add("linear", "x", params={"weight": weight})}))
    dense, row = weight.decode(), x[None]
    codes, codebook = np.ascontiguousarray(weight.codes.T.astype(np.uint8)), weight.codebook.astype(np.float32)
    engines = {
        "pqnet": lambda: model(row, threads=args.threads)[0],
        "numpy": lambda: dense @ x,
        "aqlm_by_groups": lambda: add_by_groups(table(x, codebook), codes, args.threads),
        "aqlm_by_outputs": lambda: add_by_outputs(table(x, codebook), codes, args.threads),
    }
    want = dense.astype(np.float64) @ x
    for name, run in engines.items():
        if not (apart := np.abs(run() - want).max() / np.abs(want).max()) <= TOLERANCE:
            raise AssertionError(f"{name}: {apart:.2g} of the largest output apart")
    with threadpoolctl.threadpool_limits(args.threads, "blas"):
        seconds, others = interleaved(engines, args.runs, block=40)
    aqlm = min(seconds["aqlm_by_groups"], seconds["aqlm_by_outputs"])
    emit(
        "token",
        layer=f"{args.inputs} -> {args.outputs}, d=8, K=256",
        us={name: float(f"{1e6 * s:.4g}") for name, s in seconds.items()},
        numpy_over_ours=seconds["numpy"] / seconds["pqnet"],
        aqlm_over_ours=aqlm / seconds["pqnet"],
        other_load=others,
    )


if __name__ == "__main__":
    main()
