"""Packed weights in ONNX: codes and codebooks as they are stored, decoded by Gather when the network is loaded."""

from math import prod
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from pqnet.codecs import Entries, Lookup, Packed
from pqnet.codecs.packing import code_bits

if TYPE_CHECKING:
    from pqnet_converters.onnx.writer.writer import Writer

__all__ = ["write_packed"]


def write_packed(w: "Writer", name: str, packed: Packed) -> str:
    """Write what decodes to a weight, and return the name of its value."""
    decoding = packed.decoding()
    total = ""
    for i, lookup in enumerate(decoding.lookups):
        part = _looked_up(w, f"{name}.{i}" if i else name, lookup, decoding.shape)
        total = w.add("Add", total, part) if total else part
    if not total:
        zero = w.constant(np.zeros((), np.float32), "float32")
        total = w.add("Expand", zero, w.ints(*decoding.shape))
    for i, entries in enumerate(decoding.entries):
        total = _with_entries(w, f"{name}.entries{i or ''}", total, entries, decoding.shape)
    return total


def _float(w: "Writer", array: np.ndarray, name: str) -> str:
    """Return numbers as float32, stored as float16 if that, times a power of two, holds them exactly."""
    top = float(np.abs(array).max(initial=0))
    factor = np.float32(2.0 ** np.floor(np.log2(top)) if 0 < top < np.inf else 1)
    halves = (array.astype(np.float32) / factor).astype(np.float16)
    if not np.array_equal(halves.astype(np.float32) * factor, array):
        return w.constant(array, "float32", name)
    wide = w.add("Cast", w.constant(halves, "float16", name), to=TensorProto.FLOAT)
    return str(wide if factor == 1 else w.add("Mul", wide, w.constant(factor, "float32")))


def _looked_up(w: "Writer", name: str, lookup: Lookup, shape: tuple[int, ...]) -> str:
    k, d = lookup.codebook.shape
    codes = _codes(w, name, lookup.codes, prod(shape) // d, k)
    values = w.add("Gather", _float(w, lookup.codebook, f"{name}.codebook"), codes, axis=0)
    if lookup.scales is not None:
        rows, groups = lookup.scales.shape
        grid = w.add("Reshape", values, w.ints(rows, groups, prod(shape) // (rows * groups)))
        if lookup.zeros is not None:
            zeros = w.constant(lookup.zeros.astype(np.uint8)[:, :, None], "uint8", f"{name}.zeros")
            grid = w.add("Sub", grid, w.add("Cast", zeros, to=TensorProto.FLOAT))
        values = w.add("Mul", grid, _float(w, lookup.scales[:, :, None], f"{name}.scales"))
    if lookup.layout == "channel" and len(shape) > 2:
        apart = w.add("Reshape", values, w.ints(shape[0], *shape[2:], shape[1]))
        return str(w.add("Transpose", apart, perm=[0, len(shape) - 1, *range(1, len(shape) - 1)]))
    return str(w.add("Reshape", values, w.ints(*shape)))


def _codes(w: "Writer", name: str, stream: np.ndarray, n: int, k: int) -> str:
    """Return the codes as int32; of widths other than 8 and 16 bits, eight codes are taken from as many bytes as bits.

    See `pqnet.codecs.packing` for the order of bits.
    """
    bits = code_bits(k)
    if bits == 0:
        return str(w.add("Expand", w.constant(0, "int32"), w.ints(n)))
    if bits in (8, 16):
        codes = stream if bits == 8 else stream.view("<u2").astype(np.uint16)
        return str(w.add("Cast", w.constant(codes, codes.dtype.name, f"{name}.codes"), to=TensorProto.INT32))
    groups = -(-n // 8)
    bytes_ = np.zeros(groups * bits, np.uint8)
    bytes_[: len(stream)] = stream
    wide = w.add("Cast", w.constant(bytes_.reshape(groups, bits), "uint8", f"{name}.codes"), to=TensorProto.INT32)
    first, shift = np.divmod(np.arange(8) * bits, 8)
    total = ""
    for more in range((7 + bits + 7) // 8):  # the bytes over which a code may extend
        place = first + more
        factor = np.where(place < bits, 256**more, 0)
        column = w.add("Gather", wide, w.constant(np.minimum(place, bits - 1), "int64"), axis=1)
        term = w.add("Mul", column, w.constant(factor, "int32")) if more else column
        total = w.add("Add", total, term) if total else term
    moved = w.add("Div", total, w.constant(2**shift, "int32"))
    codes_ = w.add("Mod", moved, w.constant(1 << bits, "int32"))
    flat = w.add("Reshape", codes_, w.ints(-1))
    return flat if groups * 8 == n else str(w.add("Slice", flat, w.ints(0), w.ints(n)))


def _with_entries(w: "Writer", name: str, value: str, entries: Entries, shape: tuple[int, ...]) -> str:
    """Add single weights at their places, which are stored as distances from one to the next."""
    places = np.concatenate([np.asarray(p) for _, p in entries.gaps.pieces()])
    steps = np.diff(places, prepend=0)
    dtype = next(t for t in ("uint8", "uint16", "int32", "int64") if steps.max(initial=0) <= np.iinfo(t).max)
    distances = w.add("Cast", w.constant(steps, dtype, f"{name}.gaps"), to=TensorProto.INT64)
    at = w.add("CumSum", distances, w.constant(0, "int64"))
    values = _float(w, entries.values, f"{name}.values")
    flat = w.add("Reshape", value, w.ints(-1))
    added = w.add("ScatterElements", flat, at, values, axis=0, reduction="add")
    return str(w.add("Reshape", added, w.ints(*shape)))
