"""Nearest codeword and k-means against scikit-learn, in one process and in turn; ratios are theirs / ours.

Example: ``python bench/bench_kmeans.py --runs 7``
"""

import argparse

import numpy as np
from common import emit, machine, paired_medians
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin

import pqnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--blocks", type=int, default=262144)
    args = parser.parse_args()
    emit("machine", **machine())
    rng = np.random.default_rng(0)
    for d in (4, 8, 9, 18):
        blocks = rng.standard_normal((args.blocks, d)).astype(np.float32)
        codebook = blocks[:256].copy()
        ours, theirs = paired_medians(
            lambda b=blocks, c=codebook: pqnet.assign(b, c),
            lambda b=blocks, c=codebook: pairwise_distances_argmin(b, c),
            args.runs,
        )
        emit("assign", n=args.blocks, d=d, k=256, seconds=ours, sklearn_over_ours=theirs / ours)
    blocks = rng.standard_normal((args.blocks, 9)).astype(np.float32)
    init = blocks[:256].copy()

    def theirs_fit() -> KMeans:
        return KMeans(256, init=init, n_init=1, max_iter=25, tol=0, algorithm="lloyd").fit(blocks)

    def ours_fit() -> pqnet.KMeansResult:
        return pqnet.weighted_kmeans(blocks, 256, init=init, n_iter=25)

    ours, theirs = paired_medians(ours_fit, theirs_fit, max(1, args.runs // 3))
    error = ours_fit().error / theirs_fit().inertia_
    emit(
        "kmeans", n=args.blocks, d=9, k=256, n_iter=25, seconds=ours, sklearn_over_ours=theirs / ours, error_ratio=error
    )


if __name__ == "__main__":
    main()
