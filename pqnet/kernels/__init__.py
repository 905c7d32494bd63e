"""Numba kernels. Inputs are already checked, outputs and scratch already allocated; kernels raise nothing.

Arguments come in the order inputs, scalars, scratch, outputs. Work is split in chunks that depend on the data alone,
each with its own slice of scratch, and partial results are added in chunk order: the bits of a result never depend
on the number of threads. Shape letters: N blocks, D block size, K codewords, M groups.

Compiled kernels are cached on disk in a folder named after the source of all kernels and the vector width: Numba's
own key sees neither a change in another file (`simd`) nor the width, and would run old machine code.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llvmlite.binding import get_host_cpu_name
from numba.core import config
from numba.misc import appdirs

from pqnet.kernels import simd


@contextmanager
def _cache_folder() -> Iterator[None]:
    """Let Numba cache what is decorated inside the block in the folder of these sources."""
    digest = hashlib.sha256(f"{simd.ISA} {simd.BYTE_TABLES}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    before = config.CACHE_DIR
    base = before or os.path.join(appdirs.user_cache_dir("pqnet", False), "kernels")
    config.CACHE_DIR = os.path.join(base, digest.hexdigest()[:16])
    try:
        yield
    finally:
        config.CACHE_DIR = before


with _cache_folder():
    CACHE_FOLDER, HOST = config.CACHE_DIR, get_host_cpu_name()
    from pqnet.kernels import attention as attention
    from pqnet.kernels import copy as copy
    from pqnet.kernels import depthwise as depthwise
    from pqnet.kernels import dots as dots
    from pqnet.kernels import driver as driver
    from pqnet.kernels import elementwise as elementwise
    from pqnet.kernels import gemm as gemm
    from pqnet.kernels import kmeans as kmeans
    from pqnet.kernels import kmeans_rows as kmeans_rows
    from pqnet.kernels import lut as lut
    from pqnet.kernels import lut_planes as lut_planes
    from pqnet.kernels import lut_rows as lut_rows
    from pqnet.kernels import matmul as matmul
    from pqnet.kernels import norm as norm
    from pqnet.kernels import patches as patches
    from pqnet.kernels import pool as pool
    from pqnet.kernels import prepare as prepare
    from pqnet.kernels import resize as resize
    from pqnet.kernels import scalar as scalar
    from pqnet.kernels import winograd as winograd
