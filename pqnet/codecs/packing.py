"""The one definition of bit order: codes as a stream of ceil(log2 K) bits each, least significant bit first.

Eight codes take as many bytes as a code has bits, so that streams are packed and unpacked eight codes at a time: the
codes at one of the eight places lie in the same bits of every group of bytes.
"""

from typing import Any

import numpy as np

from pqnet._check import error, index_array
from pqnet.errors import PQNetError

__all__ = [
    "PIECE",
    "check_stream",
    "code_array",
    "code_bits",
    "code_dtype",
    "pack_codes",
    "packed_nbytes",
    "unpack_at",
    "unpack_codes",
    "unpack_rows",
]

PIECE = 1 << 16  # codes that are worked on at a time, a multiple of 8: bounds the memory beside the result


def code_bits(k: int) -> int:
    """Return the bits of one code of a codebook with ``k`` codewords: ceil(log2 k), 0 for one codeword."""
    return (k - 1).bit_length()


def packed_nbytes(n: int, k: int) -> int:
    """Return the bytes that ``n`` codes of a codebook with ``k`` codewords take when packed."""
    return (n * code_bits(k) + 7) // 8


def code_dtype(k: int) -> type[np.unsignedinteger]:
    """Return the smallest dtype that holds unpacked codes below ``k``."""
    return np.uint8 if k <= 256 else np.uint16 if k <= 65536 else np.uint32


def code_array(codes: Any, k: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return codes below ``k`` as an array of integers of this shape, or raise; unsigned ones are not copied."""
    if isinstance(codes, np.ndarray) and codes.dtype.kind == "u" and codes.shape == shape and codes.max(initial=0) < k:
        return codes
    return index_array(codes, "codes", below=k, shape=shape)


def pack_codes(codes: np.ndarray, k: int) -> np.ndarray:
    """Pack codes (any shape, C order) below ``k`` into a uint8 stream; code i has bits [i*b, (i+1)*b)."""
    bits = code_bits(k)
    flat = np.ascontiguousarray(codes).reshape(-1)
    if bits == 8:
        return flat.astype(np.uint8)
    if bits == 16:
        return flat.astype("<u2").view(np.uint8)
    stream = np.zeros(packed_nbytes(flat.size, k), np.uint8)
    for start in range(0, flat.size if bits else 0, PIECE):
        packed = _pack_piece(flat[start : start + PIECE], bits)
        stream[start * bits // 8 :][: len(packed)] = packed[: len(stream) - start * bits // 8]
    return stream


def _pack_piece(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return the bytes of codes, those of the last group of eight in full."""
    groups = -(-len(codes) // 8)
    padded = np.zeros((groups, 8), np.uint32)
    padded.reshape(-1)[: len(codes)] = codes
    stream = np.zeros((groups, bits), np.uint8)
    for place in range(8):
        first, shift = divmod(place * bits, 8)
        shifted = padded[:, place] << shift
        for more in range(_bytes_spanned(bits, shift)):
            stream[:, first + more] |= (shifted >> (8 * more)).astype(np.uint8)
    return stream.reshape(-1)


def _bytes_spanned(bits: int, shift: int) -> int:
    """Return over how many bytes a code extends whose first bit is bit ``shift`` of a byte."""
    return (shift + bits + 7) // 8


def unpack_codes(packed: np.ndarray, n: int, k: int, start: int = 0) -> np.ndarray:
    """Return ``n`` codes of a packed stream, from code ``start`` on, as uint8, uint16 or uint32, shape (n,)."""
    bits = code_bits(k)
    if bits == 8:
        return packed[start : start + n]
    if bits == 16:
        return packed[2 * start : 2 * (start + n)].view("<u2").astype(np.uint16, copy=False)
    codes = np.zeros(n, code_dtype(k))
    at = start
    while at < start + n and bits:
        first = at - at % 8
        unpacked = _unpack_piece(packed, first, min(PIECE, start + n - first), bits, codes.dtype)[at - first :]
        codes[at - start :][: len(unpacked)] = unpacked
        at += len(unpacked)
    return codes


def _unpack_piece(packed: np.ndarray, first: int, n: int, bits: int, dtype: np.dtype) -> np.ndarray:
    """Return ``n`` codes from code ``first`` on, which is a multiple of 8."""
    groups = -(-n // 8)
    stream = packed[first * bits // 8 :][: groups * bits]
    if len(stream) < groups * bits:  # the last group of eight is not complete
        stream = np.append(stream, np.zeros(groups * bits - len(stream), np.uint8))
    stream = stream.reshape(groups, bits)
    wide: Any = np.uint16 if bits <= 9 else np.uint32
    codes = np.empty((groups, 8), dtype)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        value = stream[:, byte].astype(wide) >> shift
        for more in range(1, _bytes_spanned(bits, shift)):
            value |= stream[:, byte + more].astype(wide) << (8 * more - shift)
        codes[:, place] = value & ((1 << bits) - 1)
    return codes.reshape(-1)[:n]


def check_stream(stream: np.ndarray, n: int, k: int) -> np.ndarray:
    """Return a read-only copy of a stream of ``n`` codes, or raise PQNetError unless `pack_codes` makes it."""
    if stream.dtype != np.uint8:
        raise PQNetError(f"codes: expected uint8, got {stream.dtype}")
    if stream.shape != (packed_nbytes(n, k),):
        raise PQNetError(f"codes: expected {packed_nbytes(n, k)} bytes, got shape {stream.shape}")
    used = n * code_bits(k) % 8
    if used and stream[-1] >> used:
        raise PQNetError("codes: expected zero bits after the last code, got others")
    if k < 1 << code_bits(k):
        starts = range(0, n, PIECE)
        largest = max((int(unpack_codes(stream, min(PIECE, n - at), k, at).max()) for at in starts), default=0)
        if largest >= k:
            raise error("codes", f"entries in [0, {k})", f"one of {largest}")
    kept = stream.copy()
    kept.flags.writeable = False
    return kept


def unpack_at(packed: np.ndarray, index: np.ndarray, k: int) -> np.ndarray:
    """Return the codes at the given places of a stream, uint32 of the shape of ``index``."""
    bits = code_bits(k)
    if bits == 0:
        return np.zeros(index.shape, np.uint32)
    first = index.astype(np.int64) * bits
    shift = (first & 7).astype(np.uint32)
    first >>= 3
    value = packed[first].astype(np.uint32)
    for more in range(1, _bytes_spanned(bits, 7)):
        # Beyond the stream lies nothing that a code has bits in.
        value |= packed.take(first + more, mode="clip").astype(np.uint32) << np.uint32(8 * more)
    value >>= shift
    value &= np.uint32((1 << bits) - 1)
    return value


def unpack_rows(packed: np.ndarray, rows: np.ndarray, m: int, k: int) -> np.ndarray:
    """Return the codes of some rows of ``m`` codes each, shape (len(rows), m), reading the bytes of these rows only."""
    bits = code_bits(k)
    if bits in (8, 16):
        whole = packed if bits == 8 else packed.view("<u2")
        codes: np.ndarray = whole.reshape(-1, m)[rows]
        return codes.astype(code_dtype(k), copy=False)
    return unpack_at(packed, rows[:, None] * m + np.arange(m), k).astype(code_dtype(k))
