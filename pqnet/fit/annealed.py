"""The annealed k-means of "Permute, Quantize, and Fine-tune" (its SR-C)."""

import numpy as np

from pqnet import _check
from pqnet._progress import ticking
from pqnet.fit.kmeans import KMeansResult, assign

__all__ = ["annealed_kmeans"]

JITTER = 1e-5  # deviation of what is added to the first codebook


def annealed_kmeans(blocks: np.ndarray, k: int, *, n_iter: int, seed: int, threads: int | None = None) -> KMeansResult:
    """Find K codewords by k-means whose updates see the blocks with noise that fades away.

    Iteration i of I takes the means of ``v + (1 - i / I)**0.5 * noise``, where the noise of each of the d numbers has
    the deviation that this number has over all blocks; a codeword without members becomes zero, as published. The mean
    of the noise of n blocks is drawn at once, with 1 / n of its variance.

    Parameters
    ----------
    blocks : float32 array, shape (N, D)
    k : int
        Codewords, at most N; the first ones are different blocks at random.
    n_iter : int
        I, at least 1; the last of I + 1 updates is without noise.
    seed : int
    threads : int, optional
        Default: all cores. The result does not depend on it.

    Returns
    -------
    KMeansResult
    """
    v = _check.float_array(blocks, "blocks", ndim=2)
    k, n_iter = _check.integer(k, "k", 1, len(v)), _check.integer(n_iter, "n_iter", 1)
    rng = np.random.default_rng(_check.rng_seed(seed))
    deviation = v.std(0, dtype=np.float64)
    first = v[rng.permutation(len(v))[:k]]
    codebook = (first + JITTER * rng.standard_normal(first.shape)).astype(np.float32)
    for i in ticking("k-means", range(n_iter + 1), n_iter + 1):
        codes = assign(v, codebook, threads=threads)
        counts = np.bincount(codes, minlength=k)[:, None]
        sums = np.stack([np.bincount(codes, column, k) for column in v.T], 1)
        members = np.maximum(counts, 1)
        noise = np.sqrt((1 - i / n_iter) / members) * deviation * rng.standard_normal(sums.shape)
        codebook = np.where(counts, sums / members + noise, 0).astype(np.float32)
    codes = assign(v, codebook, threads=threads)
    error = float(np.square(v - codebook[codes], dtype=np.float64).sum())
    return KMeansResult(codebook, codes, error, n_iter + 1)
