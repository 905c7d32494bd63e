"""What follows a product in the same pass: scale, shift, residual, activation, and the store."""

import numpy as np
from numba import njit

from pqnet.kernels.abi import CONST, DATA, INDEX, MAYBE_CONST, MAYBE_DATA, SIZE, Arguments
from pqnet.kernels.ops.activation import activate_row
from pqnet.kernels.ops.functions import at_least, at_most
from pqnet.kernels.products.tile import ROWS
from pqnet.kernels.simd import WIDTH, add, fma, load, load_head, splat, store, store_head

# Sums over windows of the input, one for each output and position. Element i of the window of group g, image b, row y
# and column j is data[x + g * group_step + b * image_step + y * pitch + j + index[offsets + i]]; a window has
# ``reduction`` of them, a group ``outputs`` outputs, an image ``image`` positions in rows of ``width``.
WINDOWS = Arguments(
    x=DATA,
    image_step=SIZE,
    group_step=SIZE,
    offsets=INDEX,
    reduction=SIZE,
    outputs=SIZE,
    groups=SIZE,
    batch=SIZE,
    pitch=SIZE,
    width=SIZE,
    image=SIZE,
)

# Outputs lie ``out_step`` apart, their positions side by side. Scale and shift have one number for each output, the
# residual has the positions of the output side by side, too. ``activation`` is a kind of `kernels.ops.activation`, 0:
# none.
EPILOGUE = Arguments(
    out=DATA,
    out_step=SIZE,
    scale=MAYBE_CONST,
    shift=MAYBE_CONST,
    residual=MAYBE_DATA,
    residual_step=SIZE,
    activation=SIZE,
    parameters=CONST,
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def clamp_limits(e, const):
    # What the activation of an EPILOGUE clamps results to: of ReLU and clamps its bounds, of others no bounds
    least, most = np.float32(-np.inf), np.float32(np.inf)
    if e.activation == 1:
        least = np.float32(0)
    elif e.activation == 2:
        least, most = const[e.parameters], const[e.parameters + 1]
    return least, most


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def place_of_tiles(e, row, at):
    # Where tiles of `products.tile` go whose first output is ``row``, the first position ``at``
    residual = e.residual + row * e.residual_step + at if e.residual >= 0 else -1
    return e.out + row * e.out_step + at, e.out_step, residual, e.residual_step


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def put_factors(e, row, const, factors, f):
    # OUT factors from f: the scales of ROWS outputs from ``row`` on, their shifts, and what clamps them
    for r in range(ROWS):
        factors[f + r] = const[e.scale + row + r] if e.scale >= 0 else np.float32(1)
        factors[f + ROWS + r] = const[e.shift + row + r] if e.shift >= 0 else np.float32(0)
    factors[f + 2 * ROWS], factors[f + 2 * ROWS + 1] = clamp_limits(e, const)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def finish_rows(sums, s, step, rows, o, at, n, e, data, const):
    # IN sums (.,) f4: rows x n sums, rows ``step`` apart from s, of outputs o.. at positions at .. at + n
    # IN e: an EPILOGUE; OUT data: the rows of these outputs, nothing beside them
    kind, parameters, residual = e.activation, e.parameters, e.residual
    least, most = clamp_limits(e, const)
    low, high = splat(least), splat(most)
    for r in range(rows):
        target = e.out + (o + r) * e.out_step + at
        scale = splat(const[e.scale + o + r] if e.scale >= 0 else np.float32(1))
        shift = splat(const[e.shift + o + r] if e.shift >= 0 else np.float32(0))
        c = s + r * step
        beside = residual + (o + r) * e.residual_step + at
        whole = n // WIDTH * WIDTH
        if residual >= 0:
            for j in range(0, whole, WIDTH):
                v = add(fma(load(sums, c + j), scale, shift), load(data, beside + j))
                store(data, target + j, at_most(at_least(v, low), high))
        else:
            for j in range(0, whole, WIDTH):
                store(data, target + j, at_most(at_least(fma(load(sums, c + j), scale, shift), low), high))
        if whole < n:
            v = fma(load(sums, c + whole), scale, shift)
            if residual >= 0:
                v = add(v, load_head(data, beside + whole, n - whole))
            store_head(data, target + whole, at_most(at_least(v, low), high), n - whole)
        if kind > 2 and e.out_step != n:
            activate_row(kind, data, target, n, const, parameters)
    if kind > 2 and e.out_step == n:  # outputs of a few positions each follow each other
        activate_row(kind, data, e.out + o * n + at, rows * n, const, parameters)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)
def finish_column(total, sums, s, rows, o, at, e, data, const):
    # The same for one position of ``rows`` outputs, at most WIDTH, whose sums are lanes of a vector; sums from s on is
    # room for them
    least, most = clamp_limits(e, const)
    scale = load(const, e.scale + o) if e.scale >= 0 else splat(np.float32(1))
    v = fma(total, scale, load(const, e.shift + o) if e.shift >= 0 else splat(np.float32(0)))
    if e.residual >= 0:
        store(sums, s, v)
        for r in range(rows):
            sums[s + r] += data[e.residual + (o + r) * e.residual_step + at]
        v = load(sums, s)
    store(sums, s, at_most(at_least(v, splat(least)), splat(most)))
    if e.activation > 2:
        activate_row(e.activation, sums, s, rows, const, e.parameters)
    for r in range(rows):
        data[e.out + (o + r) * e.out_step + at] = sums[s + r]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def finish_vectors(sums, s, rows, o, at, e, data, const):
    # The same for rows of one vector of positions each, one behind another in ``sums``, which are used up
    least, most = clamp_limits(e, const)
    low, high, one, zero = splat(least), splat(most), np.float32(1), np.float32(0)
    out, step = e.out + o * e.out_step + at, e.out_step
    waits = e.activation > 2
    for r in range(rows):
        scale = splat(const[e.scale + o + r] if e.scale >= 0 else one)
        shift = splat(const[e.shift + o + r] if e.shift >= 0 else zero)
        v = fma(load(sums, s + r * WIDTH), scale, shift)
        if e.residual >= 0:
            v = add(v, load(data, e.residual + (o + r) * e.residual_step + at))
        if waits:
            store(sums, s + r * WIDTH, v)
        else:
            store(data, out + r * step, at_most(at_least(v, low), high))
    if waits:
        activate_row(e.activation, sums, s, rows * WIDTH, const, e.parameters)
        for r in range(rows):
            store(data, out + r * step, load(sums, s + r * WIDTH))
