"""Rows of features (tokens) as words of 8-bit integers whose scale and zero point each has from its own numbers.

Features lie outermost, as channels of images do: a vector has one feature of WIDTH tokens.
"""

import numpy as np
from numba import njit

from pqnet.kernels.abi import DATA, SIZE, Arguments, step
from pqnet.kernels.ops.functions import at_least, at_most
from pqnet.kernels.products.tile import LANES
from pqnet.kernels.simd import (
    WIDTH,
    divide,
    fma,
    load,
    multiply,
    round_even,
    select_less,
    splat,
    store,
    store_head,
    subtract,
)
from pqnet.kernels.words import words_of_bytes

LEVELS, NUMBERS = 255, 4  # the largest integer; integers of a word
MOST, LEAST = 1e38, 1e-30  # of the numbers of a token that count, so that their range is finite; of a range

# Words [group of features][token], behind them a row of scales and one of zero points, negative, all ``tokens`` long.
TOKEN_WORDS = Arguments(
    x=DATA,
    out=DATA,
    channel_step=SIZE,
    channels=SIZE,
    tokens=SIZE,
    per_task=SIZE,  # vectors of tokens
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _ends(data, x, step, channels):
    # The least and the largest number of WIDTH tokens, 0 or beyond it, infinities as MOST; NaN counts as nothing
    nothing = splat(np.float32(0))
    low0, low1, high0, high1 = nothing, nothing, nothing, nothing
    for c in range(0, channels - 1, 2):
        a, b = load(data, x + c * step), load(data, x + (c + 1) * step)
        low0, low1, high0, high1 = at_most(low0, a), at_most(low1, b), at_least(high0, a), at_least(high1, b)
    last = load(data, x + (channels - 1) * step)
    low, high = at_most(at_most(low0, low1), last), at_least(at_least(high0, high1), last)
    return at_least(low, splat(np.float32(-MOST))), at_most(high, splat(np.float32(MOST)))


@step(TOKEN_WORDS)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def to_token_words(task, g, data, const, codes, index, scratch):
    words = (g.channels + NUMBERS - 1) // NUMBERS
    levels, least, nothing = splat(np.float32(LEVELS)), splat(np.float32(LEAST)), splat(np.float32(0))
    for j in range(task * g.per_task * WIDTH, min((task + 1) * g.per_task * WIDTH, g.tokens), WIDTH):
        used, at = min(WIDTH, g.tokens - j), g.x + j
        low, high = _ends(data, at, g.channel_step, g.channels)
        size = subtract(high, low)
        factor = select_less(size, least, nothing, divide(levels, size))
        zero = round_even(multiply(low, factor))  # negative
        offset = subtract(nothing, zero)
        for c in range(words):
            x, most = at + c * NUMBERS * g.channel_step, g.channels - 1 - c * NUMBERS
            word = words_of_bytes(
                load(data, x),
                load(data, x + min(1, most) * g.channel_step),
                load(data, x + min(2, most) * g.channel_step),
                load(data, x + min(3, most) * g.channel_step),
                factor,
                offset,
            )
            store_head(data, g.out + c * g.tokens + j, word, used)
        scales = g.out + words * g.tokens + j
        store_head(data, scales, select_less(size, least, nothing, divide(size, levels)), used)
        store_head(data, scales + g.tokens, zero, used)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def scale_tokens(sums, s, rows, n, data, scales, tokens, const, weights):
    # INOUT sums from s: sums of rows x n tokens, LANES apart, in the units of each token; const[weights:] has the sums
    # of the weights of each row, data[scales:] and data[scales + tokens:] what `to_token_words` put there
    for j in range(0, n, WIDTH):
        factor, zero = load(data, scales + j), load(data, scales + tokens + j)
        for r in range(rows):
            at = s + r * LANES + j
            store(sums, at, multiply(fma(zero, splat(const[weights + r]), load(sums, at)), factor))
