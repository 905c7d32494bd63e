"""placeholder"""
from numba import njit
@njit(cache=True, nogil=True, error_model="numpy")
def activate_row(kind, array, i, n, const, p):
    pass
