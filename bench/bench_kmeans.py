"""Nearest codeword and k-means against faiss and scikit-learn, exact and Lloyd k-means of numbers; theirs / ours.

Threads of the peers go on spinning for a while after a call, so that a nap precedes the turn of each side, which then
runs several times. Both start from the same codebook, make the same number of updates and see all blocks.

Example: ``python bench/bench_kmeans.py --runs 21 --threads 2``
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from common import emit, machine
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

import pqnet
from pqnet.fit import scalar_kmeans

NAP = 0.05  # seconds until idle threads have stopped to spin
BLOCK = 3  # runs of one side in turn; the first of them warms up and is not counted


def medians(runs: int, **sides: Callable[[], Any]) -> dict[str, float]:
    """Return the median seconds of every side, timed in turns of a few runs."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(-(-runs // (BLOCK - 1))):
        for name, function in sides.items():
            time.sleep(NAP)
            for i in range(BLOCK):
                start = time.perf_counter()
                function()
                if i:
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def bench_assign(n: int, d: int, k: int, runs: int, threads: int) -> None:
    """E-step: faiss' flat index searched for the nearest one."""
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((n, d)).astype(np.float32)
    codebook = blocks[:k].copy()
    index = faiss.IndexFlatL2(d)
    index.add(codebook)
    seconds = medians(
        runs,
        ours=lambda: pqnet.assign(blocks, codebook, threads=threads),
        faiss=lambda: index.search(blocks, 1),
    )
    same = float(np.mean(index.search(blocks, 1)[1][:, 0] == pqnet.assign(blocks, codebook)))
    emit(
        "assign", n=n, d=d, k=k, seconds=seconds["ours"], faiss_over_ours=seconds["faiss"] / seconds["ours"], same=same
    )


def bench_kmeans(n: int, d: int, k: int, runs: int, threads: int, updates: int = 25) -> None:
    """Lloyd from the same codebook with the same number of updates; errors are those of the codebooks returned."""
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((n, d)).astype(np.float32)
    init = blocks[:k].copy()

    def ours() -> np.ndarray:
        return pqnet.weighted_kmeans(blocks, k, init=init, n_iter=updates, threads=threads).codebook

    def by_faiss() -> np.ndarray:
        kmeans = faiss.Kmeans(d, k, niter=updates, max_points_per_centroid=n, seed=0)
        kmeans.train(blocks, init_centroids=init)
        return kmeans.centroids

    def by_sklearn() -> np.ndarray:
        return KMeans(k, init=init, n_init=1, max_iter=updates, tol=0, algorithm="lloyd").fit(blocks).cluster_centers_

    def error(codebook: np.ndarray) -> float:
        codes = pqnet.assign(blocks, codebook)
        return float(np.square(blocks.astype(np.float64) - codebook[codes]).sum())

    sides = {"ours": ours, "faiss": by_faiss, "sklearn": by_sklearn}
    seconds = medians(runs, **sides)
    emit(
        "kmeans",
        n=n,
        d=d,
        k=k,
        updates=updates,
        seconds=seconds["ours"],
        **{f"{name}_over_ours": seconds[name] / seconds["ours"] for name in ("faiss", "sklearn")},
        **{f"error_{name}": f"{error(side()):.2f}" for name, side in sides.items()},
    )


def bench_scalar(n: int, k: int, runs: int, threads: int) -> None:
    """The exact optimum against scikit-learn's Lloyd on one coordinate."""
    values = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    start = np.quantile(values, (np.arange(k) + 0.5) / k)[:, None]
    sides = {
        "exact": lambda: scalar_kmeans(values, k, threads=threads),
        "lloyd": lambda: scalar_kmeans(values, k, method="lloyd", threads=threads),
    }
    seconds = medians(runs, **sides)
    theirs = KMeans(k, init=start, n_init=1, algorithm="lloyd")
    seconds |= medians(max(2, runs // 5), sklearn=lambda: theirs.fit(values[:, None]))
    emit(
        "scalar_kmeans",
        n=n,
        k=k,
        seconds_exact=seconds["exact"],
        seconds_lloyd=seconds["lloyd"],
        sklearn_over_exact=seconds["sklearn"] / seconds["exact"],
        **{f"error_{name}": f"{side().error:.4f}" for name, side in sides.items()},
        error_sklearn=f"{theirs.inertia_:.4f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--blocks", type=int, default=262144)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    faiss.omp_set_num_threads(args.threads)
    emit("machine", **machine() | {"threads": args.threads, "faiss": faiss.__version__})
    with threadpool_limits(args.threads):
        for d in (4, 8, 9, 18):
            bench_assign(args.blocks, d, 256, args.runs, args.threads)
        for d in (9, 4, 8, 18):
            bench_kmeans(args.blocks, d, 256, args.runs if d == 9 else max(4, args.runs // 5), args.threads)
        bench_scalar(235200, 16, args.runs, args.threads)


if __name__ == "__main__":
    main()
