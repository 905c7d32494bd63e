"""The codec for all layers that a recipe does not name, in the form in which it fits each of them."""

import math
from collections.abc import Mapping
from dataclasses import replace

from pqnet.codecs import PQ, Additive, Codec, Scalar, Sparse
from pqnet.codecs.layout import LAYOUTS
from pqnet.codecs.pq import clamp_k
from pqnet.codecs.scalar import ScalarCodec
from pqnet.errors import ConfigError

__all__ = ["adaptation_table", "adapted", "fits"]

Shape = tuple[int, ...]
FEWEST = 2  # codewords or values; a weight of one says nothing


def adapted(codec: Codec, shape: Shape) -> Codec | None:
    """Return a codec as it applies to a weight of a shape, or, where it does not, the one nearest to it.

    Of `PQ` the divisor nearest to d, in the other layout if there is none within a factor of 2 in its own, and K
    limited as by ``clamp="floor"``; of scales of groups the nearest divisor; of `Scalar` and `Sparse` as many values as
    the weight has at most; of `Additive` all parts. None, float, where a weight is too small for two codewords.

    Examples
    --------
    >>> from pqnet import PQ
    >>> adapted(PQ(256, 8, "channel"), (64, 1, 3, 3))  # a depthwise convolution
    PQ(k=16, d=9, layout='spatial', codebook_dtype='float16', clamp=None)
    """
    found = codec if fits(codec, shape) else _nearest(codec, shape)
    return None if found is None else found.check(shape)


def fits(codec: Codec, shape: Shape) -> bool:
    """Tell whether a codec applies to a weight of a shape as it is, its own clamp aside."""
    try:
        codec.check(shape)
    except ConfigError:
        return False
    return True


def adaptation_table(default: Codec, changed: Mapping[str, tuple[Shape, Codec | None]]) -> str:
    """Say which layers have another codec than the default, and which."""
    lines = [f"recipe: the default ({default}) does not fit {len(changed)} layers as it is; they have what is nearest:"]
    lines.append(f"{'layer':<32} {'shape':<18} codec")
    for name, (shape, codec) in changed.items():
        lines.append(f"{name:<32} {'x'.join(map(str, shape)):<18} {'float' if codec is None else codec}")
    return "\n".join([*lines, "Name a layer in the recipe to choose another codec for it."])


def _nearest(codec: Codec, shape: Shape) -> Codec | None:
    numbers = math.prod(shape)
    if isinstance(codec, PQ):
        d, layout = _blocks(codec, shape)
        k = clamp_k(codec.k, numbers // d, "floor")
        return None if k < FEWEST else replace(codec, k=k, d=d, layout=layout)  # type: ignore[arg-type]
    if isinstance(codec, Additive):
        parts = [part for part in (adapted(part, shape) for part in codec.parts) if part is not None]
        return replace(codec, parts=parts) if len(parts) == len(codec.parts) else None
    if isinstance(codec, Sparse):
        return replace(codec, count=numbers)
    if not isinstance(codec, ScalarCodec):
        return codec
    if codec.group is not None:
        codec = replace(codec, group=_divisor(math.prod(shape[1:]), codec.group))  # type: ignore[type-var]
    if isinstance(codec, Scalar):
        k = clamp_k(codec.k, numbers, "floor")
        return None if k < FEWEST else replace(codec, k=min(codec.k, k))
    return codec


def _blocks(codec: PQ, shape: Shape) -> tuple[int, str]:
    """Return block size and layout nearest to those of a codec."""
    lengths = {"channel": shape[1], "spatial": math.prod(shape[1:])}
    own, *others = sorted(LAYOUTS, key=lambda layout: layout != codec.layout)
    found = {layout: _divisor(lengths[layout], codec.d) for layout in (own, *others)}
    if codec.d / 2 <= found[own] <= codec.d * 2:
        return found[own], own
    nearest = min(found, key=lambda layout: abs(math.log(found[layout] / codec.d)))
    return found[nearest], nearest


def _divisor(n: int, wanted: int) -> int:
    """Return the divisor of n nearest to ``wanted``, as a ratio."""
    small = [i for i in range(1, math.isqrt(n) + 1) if n % i == 0]
    return min({*small, *(n // i for i in small)}, key=lambda i: (abs(math.log(i / wanted)), i))
