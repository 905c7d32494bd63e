"""The one definition of bit order: codes as a stream of ceil(log2 K) bits each, least significant bit first."""

import numpy as np

from pqnet.errors import PQNetError

__all__ = ["code_bits", "pack_codes", "packed_nbytes", "read_codes", "unpack_codes", "unpack_rows"]


def code_bits(k: int) -> int:
    """Return the bits of one code of a codebook with ``k`` codewords: ceil(log2 k), 0 for one codeword."""
    return (k - 1).bit_length()


def packed_nbytes(n: int, k: int) -> int:
    """Return the bytes that ``n`` codes of a codebook with ``k`` codewords take when packed."""
    return (n * code_bits(k) + 7) // 8


def code_dtype(k: int) -> type[np.unsignedinteger]:
    """Return the smallest dtype that holds unpacked codes below ``k``."""
    return np.uint8 if k <= 256 else np.uint16 if k <= 65536 else np.uint32


def pack_codes(codes: np.ndarray, k: int) -> np.ndarray:
    """Pack codes (any shape, C order) below ``k`` into a uint8 stream; code i has bits [i*b, (i+1)*b)."""
    bits = code_bits(k)
    flat = np.ascontiguousarray(codes).reshape(-1)
    if bits == 8:
        return flat.astype(np.uint8)
    if bits == 16:
        return flat.astype("<u2").view(np.uint8)
    planes = np.empty((flat.size, bits), np.uint8)
    for b in range(bits):
        planes[:, b] = (flat >> b) & 1
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack_codes(packed: np.ndarray, n: int, k: int) -> np.ndarray:
    """Return the ``n`` codes of a packed stream as uint8, uint16 or uint32, shape (n,)."""
    bits, dtype = code_bits(k), code_dtype(k)
    if bits == 8:
        return packed[:n]
    if bits == 16:
        return packed[: 2 * n].view("<u2").astype(np.uint16, copy=False)
    planes = np.unpackbits(packed, count=n * bits, bitorder="little").reshape(n, bits)
    codes = np.zeros(n, dtype)
    for b in range(bits):
        codes |= planes[:, b].astype(dtype) << dtype(b)
    return codes


def read_codes(stream: np.ndarray, n: int, k: int) -> np.ndarray:
    """Return the ``n`` codes of a stream in a file, or raise PQNetError unless it is what `pack_codes` makes."""
    if stream.dtype != np.uint8:
        raise PQNetError(f"codes: expected uint8, got {stream.dtype}")
    if stream.shape != (packed_nbytes(n, k),):
        raise PQNetError(f"codes: expected {packed_nbytes(n, k)} bytes, got shape {stream.shape}")
    used = n * code_bits(k) % 8
    if used and stream[-1] >> used:
        raise PQNetError("codes: expected zero bits after the last code, got others")
    return unpack_codes(stream, n, k)


def unpack_rows(packed: np.ndarray, rows: np.ndarray, m: int, k: int) -> np.ndarray:
    """Return the codes of some rows of ``m`` codes each, shape (len(rows), m), unpacking these rows only."""
    bits = code_bits(k)
    starts = rows.astype(np.int64) * (m * bits)
    end = np.arange((m * bits + 14) // 8)
    at = np.minimum(starts[:, None] // 8 + end, max(len(packed) - 1, 0))
    planes = np.unpackbits(packed[at], axis=1, bitorder="little")
    wanted = np.take_along_axis(planes, starts[:, None] % 8 + np.arange(m * bits), 1)
    stream = np.packbits(wanted.reshape(-1), bitorder="little")
    return unpack_codes(stream, len(rows) * m, k).reshape(len(rows), m)
