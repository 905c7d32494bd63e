"""Weights that a source holds more than once are stored once."""

from collections.abc import Callable

import numpy as np

__all__ = ["Tied"]

LEAST = 256  # elements of arrays of several axes; biases and small arrays are often equal by chance
SEEN = 64  # elements that are compared before all are


class Tied:
    """Finds arrays that were stored before: the same array, or one of some size with equal elements.

    Exporters write a tied weight twice, say as a table and, transposed, as a matrix.
    """

    def __init__(self) -> None:
        self._same: dict[int, tuple[np.ndarray, str]] = {}
        self._alike: dict[tuple[object, ...], list[tuple[np.ndarray, str]]] = {}

    def name(self, array: np.ndarray, store: Callable[[np.ndarray], str]) -> str:
        """Return the name of an equal stored array, or that which ``store(array)`` gives to a new one."""
        if id(array) in self._same:
            return self._same[id(array)][1]
        kept = np.asarray(array, order="C")
        if array.size < LEAST or sum(n > 1 for n in array.shape) < 2:
            name = store(kept)
        else:
            flat = kept.reshape(-1)
            key = (kept.shape, kept.dtype.str, flat[:: max(flat.size // SEEN, 1)].tobytes())
            alike = self._alike.setdefault(key, [])
            name = next((n for other, n in alike if np.array_equal(other, kept)), "") or store(kept)
            alike.append((kept, name))
        self._same[id(array)] = array, name  # the array is kept alive: its id stays its own
        return name
