"""Rows of tables: dense ones, and ones whose rows are unpacked from a stream of codes as they are read.

WIDTH rows are put together in scratch, then transposed: in the result the features are outermost.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import DATA, FLAG, MAYBE_CODES, MAYBE_CONST, SIZE, Arguments, step
from pqnet.kernels.ops.copy import transpose
from pqnet.kernels.pointers import longs
from pqnet.kernels.simd import (
    WIDTH,
    copy4,
    copy8,
    copy16,
    load,
    load_head,
    multiply,
    splat,
    store,
    store_head,
)

# The table is dense, or codes of ``bits`` bits, least significant bit first, of codewords of ``block`` elements, which
# are ``word_step`` apart: 4, 8 or a multiple of 16. Ids outside of [0, below) read the nearest row: whoever checks
# their range reports them.
EMBEDDING = Arguments(
    ids=DATA,  # int64
    out=DATA,
    tokens=SIZE,
    features=SIZE,
    below=SIZE,
    dense=FLAG,
    table=MAYBE_CONST,  # rows, or codewords
    codes=MAYBE_CODES,
    bits=SIZE,
    block=SIZE,
    word_step=SIZE,
    scales=MAYBE_CONST,  # a factor for each row
    pitch=SIZE,  # of a row in scratch
    per_task=SIZE,  # times WIDTH tokens
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _code(codes, stream, i, bits):
    # Code number i; a byte that holds none of it is not read.
    if bits == 0:
        return 0
    at, shift = stream + (i * bits >> 3), i * bits & 7
    word = np.int64(codes[at])
    if shift + bits > 8:
        word |= np.int64(codes[at + 1]) << 8
    if shift + bits > 16:
        word |= np.int64(codes[at + 2]) << 16
    return word >> shift & (1 << bits) - 1


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _unpack_row(g, row, const, codes, scratch, to):
    # Codewords are copied with what is behind them; the next one overwrites that.
    blocks, size, step = g.features // g.block, g.block, g.word_step
    for m in range(blocks):
        word = g.table + _code(codes, g.codes, row * blocks + m, g.bits) * step
        if step == 4:
            copy4(const, word, scratch, to + m * size)
        elif step == 8:
            copy8(const, word, scratch, to + m * size)
        else:
            for j in range(0, step, 16):
                copy16(const, word + j, scratch, to + m * size + j)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _copy_row(g, row, const, scratch, to):
    n, x = g.features, g.table + row * g.features
    for j in range(0, n, WIDTH):
        store(scratch, to + j, load(const, x + j) if j + WIDTH <= n else load_head(const, x + j, n - j))


@step(EMBEDDING)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def embedding(task, g, data, const, codes, index, scratch):
    # scratch: WIDTH rows, a tile of WIDTH vectors
    tokens, features, pitch, ids = g.tokens, g.features, g.pitch, longs(data)
    tile = WIDTH * pitch
    for first in range(task * g.per_task * WIDTH, min((task + 1) * g.per_task * WIDTH, tokens), WIDTH):
        n = min(WIDTH, tokens - first)
        for i in range(n):
            row = min(max(ids[g.ids + first + i], 0), g.below - 1)
            if g.dense == 1:
                _copy_row(g, row, const, scratch, i * pitch)
            else:
                _unpack_row(g, row, const, codes, scratch, i * pitch)
            if g.scales >= 0:
                scale = splat(const[g.scales + row])
                for j in range(0, features, WIDTH):
                    store(scratch, i * pitch + j, multiply(load(scratch, i * pitch + j), scale))
        for f in range(0, features, WIDTH):
            out, high = g.out + f * tokens + first, min(WIDTH, features - f)
            if tokens == 1:
                store_head(data, out, load(scratch, f), high)
            elif n == WIDTH and high == WIDTH:
                transpose(scratch, f, pitch, data, out, tokens)
            else:
                transpose(scratch, f, pitch, scratch, tile, WIDTH)
                for j in range(high):
                    store_head(data, out + j * tokens, load(scratch, tile + j * WIDTH), n)
