"""Points of two outer axes, at each of which a step takes rows of a value and writes to its result."""

from numba import njit

from pqnet.kernels.abi import DATA, SIZE, Arguments

POINTS = Arguments(
    x=DATA,
    out=DATA,
    outer=SIZE,  # sizes of the axes
    inner=SIZE,
    x_outer=SIZE,  # steps of x along them
    x_inner=SIZE,
    out_outer=SIZE,  # and of the result
    out_inner=SIZE,
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def place(points, number):
    # Where x and the result begin at a point
    i, j = number // points.inner, number % points.inner
    return points.x + i * points.x_outer + j * points.x_inner, points.out + i * points.out_outer + j * points.out_inner
