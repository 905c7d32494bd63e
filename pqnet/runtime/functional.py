"""Single layers on plain arrays, with packed weights."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pqnet import _check
from pqnet._threads import default_threads
from pqnet.codecs import Packed
from pqnet.errors import PQNetError
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.runtime.engine import Engine

__all__ = ["conv2d", "embedding", "linear"]

MAX_STEP = 65535  # of stride, padding and dilation: no image is larger


@dataclass(frozen=True)
class _Same:
    """A packed weight as a key: equal to itself only, and kept alive as long as its programs are."""

    weight: Packed

    def __hash__(self) -> int:
        return id(self.weight)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.weight is self.weight


def _pair(value: Any, name: str, low: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise _check.error(name, "an int or a pair of ints", _check.describe(value))
    return _check.integer(pair[0], name, low, MAX_STEP), _check.integer(pair[1], name, low, MAX_STEP)


@lru_cache(maxsize=64)
def _engine(packed: _Same, op: str, dtype: str, inputs: int, attrs: tuple[tuple[str, Any], ...]) -> Engine:
    """Return the engine of a layer of so many inputs; rows of a linear layer, ids and pixels may be any number."""
    given, symbols = dict(attrs), {"rows": 1}
    shape: tuple[int | str, ...] = ("rows",) if op == "embedding" else ("rows", inputs)
    if op == "conv2d":
        shape = ("rows", inputs, "height", "width")
        kernel = (*packed.weight.shape[2:], 1, 1)
        symbols |= {name: (kernel[i] - 1) * given["dilation"][i] + 1 for i, name in enumerate(("height", "width"))}
    builder = GraphBuilder({"x": ValueInfo(shape, dtype)}, symbols)
    return Engine(builder.build({"y": builder.add(op, "x", params={"weight": packed.weight}, **given)}))


def _layer(op: str, x: np.ndarray, packed: Any, bias: Any, threads: int | None, **attrs: Any) -> np.ndarray:
    if not isinstance(packed, Packed):
        raise _check.error("packed", "a packed weight", _check.describe(packed), "codec.fit(weight) gives one")
    if bias is not None:
        bias = _check.float_array(bias, "bias", shape=(packed.shape[0],))
    engine = _engine(_Same(packed), op, x.dtype.name, x.shape[1] if x.ndim > 1 else 0, tuple(attrs.items()))
    out = engine.run({"x": x}, default_threads(threads))["y"]
    if bias is not None:
        out += bias.reshape(-1, 1, 1) if op == "conv2d" else bias
    return out


def linear(x: Any, packed: Packed, bias: Any = None, *, threads: int | None = None) -> np.ndarray:
    """Return ``x @ W.T + bias`` for a packed W.

    Parameters
    ----------
    x : array, shape (..., I)
    packed : Packed, shape (O, I)
    bias : array, shape (O,), optional
    threads : int, optional

    Returns
    -------
    float32 ndarray, shape (..., O)

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> packed = pqnet.PQ(k=16, d=4).fit(np.random.default_rng(0).standard_normal((32, 64)))
    >>> pqnet.linear(np.ones((5, 64)), packed).shape
    (5, 32)
    """
    x = _check.float_array(x, "x", empty=True)
    if isinstance(packed, Packed) and len(packed.shape) == 2 and x.shape[-1:] != packed.shape[1:]:
        raise PQNetError(f"x: expected an array whose last axis has size {packed.shape[1]}, got shape {x.shape}")
    rows = x.reshape(-1, x.shape[-1]) if x.ndim else x
    return _layer("linear", rows, packed, bias, threads).reshape(*x.shape[:-1], -1)


def conv2d(
    x: Any,
    packed: Packed,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    threads: int | None = None,
) -> np.ndarray:
    """Convolve with a packed weight.

    Parameters
    ----------
    x : array, shape (B, C, H, W)
    packed : Packed, shape (O, C / groups, kh, kw)
    bias : array, shape (O,), optional
    stride, padding, dilation : int or pair of ints
    groups : int
    threads : int, optional

    Returns
    -------
    float32 ndarray, shape (B, O, Ho, Wo)

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> packed = pqnet.PQ(k=16, d=9).fit(np.random.default_rng(0).standard_normal((8, 4, 3, 3)))
    >>> pqnet.conv2d(np.ones((1, 4, 6, 6)), packed, padding=1).shape
    (1, 8, 6, 6)
    """
    top, left = _pair(padding, "padding", 0)
    return _layer(
        "conv2d",
        _check.float_array(x, "x", ndim=4, empty=True),
        packed,
        bias,
        threads,
        stride=_pair(stride, "stride", 1),
        padding=(top, left, top, left),
        dilation=_pair(dilation, "dilation", 1),
        groups=_check.integer(groups, "groups", 1),
    )


def embedding(ids: Any, packed: Packed) -> np.ndarray:
    """Return the rows of a packed table; only these rows are decoded.

    Parameters
    ----------
    ids : integer array, any shape
    packed : Packed, shape (V, D)

    Returns
    -------
    float32 ndarray, shape (*ids.shape, D)

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> packed = pqnet.PQ(k=16, d=4).fit(np.random.default_rng(0).standard_normal((100, 8)))
    >>> pqnet.embedding([[3, 1, 4]], packed).shape
    (1, 3, 8)
    """
    ids = _check.int_array(ids, "ids")
    return _layer("embedding", ids.reshape(-1), packed, None, None).reshape(*ids.shape, -1)
