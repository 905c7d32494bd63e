"""Numba kernels. Inputs are already checked, outputs and scratch already allocated; kernels raise nothing.

Arguments come in the order inputs, scalars, scratch, outputs. Work is split in chunks that depend on the data alone,
each with its own slice of scratch, and partial results are added in chunk order: the bits of a result never depend
on the number of threads. Shape letters: N blocks, D block size, K codewords, M groups.

Modules are imported by those who use them. All their machine code is kept by `kernels.cache`.
"""

from pqnet.kernels import cache as cache
from pqnet.kernels import cpu as cpu

cache.use_for_kernels()
