"""Updates: a small file that makes a new model file of an old one, byte for byte.

An update is a pqnet file (see `pqnet.io.container`) of kind ``"update"``:

- its header holds the SHA-256 of the old and of the new file (``old``, ``new``: hexadecimal, of all their bytes), the
  size of the new file's header (``size``), and for each array that differs how it is stored and in how many bytes
  (``arrays``: name to ``["difference" or "whole", bytes]``);
- its array ``header`` is the new file's header, as deflated there: another zlib could deflate it to other bytes;
- its array ``data`` holds the changed arrays, one after the other in the order of the new file.

Arrays that ``arrays`` does not name are those of the old file. A difference is taken between the numbers' bits as
unsigned integers, modulo 2**bits, and written as 0, -1, 1, -2, 2 ... = 0, 1, 2, 3, 4 ...: small changes have zeros in
their upper bytes. A whole array is its numbers. Both are stored byte plane by byte plane (all lowest bytes first),
deflated where that takes less, and as they are where the number of bytes is that of the array.
"""

import hashlib
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pqnet._check import describe
from pqnet.errors import FormatError, PQNetError
from pqnet.io.arrays import array_limit
from pqnet.io.container import (
    container_bytes,
    container_content,
    container_from,
    header_document,
    inflated,
    packed_header,
    read_container,
    read_file,
)
from pqnet.io.files import Path, file_name, replaced
from pqnet.io.model_file import graph_of

__all__ = ["diff", "patch"]

WHOLE, DIFFERENCE = "whole", "difference"


def diff(old: Path, new: Path, output: Path) -> None:
    """Write what turns one model file into another: a file that `patch` applies.

    Any two model files will do. The update is small where many arrays are the same, as the codes are after codebooks,
    scales, biases and norms were trained.

    Parameters
    ----------
    old, new : str or path
        Model files.
    output : str or path
        File to write, by custom with the suffix ``.pqd``.

    Raises
    ------
    FormatError
        If ``old`` or ``new`` is damaged, or no pqnet model file.
    PQNetError
        If a file is missing, cannot be read or written.

    Examples
    --------
    >>> import filecmp, pqnet
    >>> from pqnet.demo import model_path
    >>> pqnet.quantize(pqnet.load(model_path()), "small-blocks", metric="none").save("old.h5")
    >>> pqnet.quantize(pqnet.load(model_path()), "large-blocks", metric="none").save("new.h5")
    >>> pqnet.diff("old.h5", "new.h5", "update.pqd")
    >>> pqnet.patch("old.h5", "update.pqd", "patched.h5")
    >>> filecmp.cmp("patched.h5", "new.h5", shallow=False)
    True
    """
    had, base = _model_file(old)
    wanted, arrays = _model_file(new)
    content = _update_bytes(had, base, wanted, arrays)
    with replaced(output) as temporary, open(temporary, "wb") as stream:
        stream.write(content)


def patch(old: Path, update: Path, output: Path) -> None:
    """Write the new model file of an update, byte for byte as `diff` was given it.

    Both ends are compared by their SHA-256, and ``output`` holds the whole new file or what it held before; it may be
    ``old`` itself. An update of unknown origin can do no more than make another valid model file: it is `pqnet.load`
    with a ``key`` that tells whose the new file is.

    Parameters
    ----------
    old : str or path
        The model file that the update was made for, or the new one, so that who was interrupted may ask again.
    update : str or path
        File of `diff`.
    output : str or path
        Model file to write.

    Raises
    ------
    FormatError
        If ``old`` or ``update`` is damaged, forged, or no such file.
    PQNetError
        If ``old`` is another file than the update was made for; or a file is missing, cannot be read or written.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import model_path
    >>> pqnet.load(model_path()).save("new.h5")
    >>> pqnet.diff(model_path(), "new.h5", "update.pqd")
    >>> pqnet.patch(model_path(), "update.pqd", "patched.h5")
    """
    header, parts = read_container(update, "update")
    had, base = _model_file(old)
    name, found = file_name(update), _sha256(had)
    try:
        records = _checked(header, parts)
        if found not in (header["old"], header["new"]):
            raise PQNetError(
                f"{file_name(old)}: expected the file that {name} was made for, of SHA-256 {header['old']}, "
                f"got one of {found}"
            )
        content = had if found == header["new"] else _new_bytes(header, records, parts, base)
    except FormatError as reason:
        raise FormatError(f"{name}: {reason}") from None
    with replaced(output) as temporary, open(temporary, "wb") as stream:
        stream.write(content)


def _model_file(path: Path) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return bytes and arrays of a model file that can be loaded."""
    data, name = read_file(path), file_name(path)
    header, arrays = container_content(data, "model", name)
    graph_of(header, arrays, name)
    return data, arrays


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- making --------------------------------------------------------------------------------------------------


def _update_bytes(had: bytes, base: Mapping[str, np.ndarray], wanted: bytes, arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the content of the update that turns one file into another."""
    packed, size = packed_header(wanted)
    for deflate in (True, False):
        records: dict[str, list[Any]] = {}
        pieces = []
        for name, array in arrays.items():
            if not _same(array, base.get(name)):
                kind, piece = _stored(array, base.get(name), deflate)
                records[name] = [kind, len(piece)]
                pieces.append(piece)
        header = {"old": _sha256(had), "new": _sha256(wanted), "size": size, "arrays": records}
        data = np.frombuffer(b"".join(pieces), np.uint8)
        parts = {"header": np.frombuffer(packed, np.uint8), "data": data}
        whole = sum(arrays[name].nbytes for name, (kind, _) in records.items() if kind == WHOLE)
        if whole <= _limit(parts):  # else it is like a bomb: zeros, deflated a thousandfold
            break
    return container_bytes("update", header, parts)


def _limit(parts: Mapping[str, np.ndarray]) -> int:
    """Return how many bytes of whole arrays an update may hold."""
    return array_limit(sum(part.nbytes for part in parts.values()))


def _fits(array: np.ndarray, old: np.ndarray | None) -> bool:
    return old is not None and old.dtype == array.dtype and old.shape == array.shape


def _same(array: np.ndarray, old: np.ndarray | None) -> bool:
    return old is not None and _fits(array, old) and np.array_equal(_words(array), _words(old))  # NaN is itself


def _stored(array: np.ndarray, old: np.ndarray | None, deflate: bool) -> tuple[str, bytes]:
    """Return how an array is stored, and its bytes: the way that takes least."""
    words = _words(array)
    whole = _planes(words)
    options = {WHOLE: zlib.compress(whole, 9) if deflate else whole}
    if old is not None and _fits(array, old):
        options[DIFFERENCE] = zlib.compress(_planes(_unsigned(words - _words(old))), 9)
    kind = min(options, key=lambda name: len(options[name]))
    return (kind, options[kind]) if len(options[kind]) < len(whole) else (WHOLE, whole)


def _words(array: np.ndarray) -> np.ndarray:
    """Return the bits of an array's numbers as a vector of unsigned integers."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.itemsize}")


def _unsigned(difference: np.ndarray) -> np.ndarray:
    """Return differences modulo 2**bits as 0, 1, 2, 3, 4 ... for 0, -1, 1, -2, 2 ..."""
    bits = difference.dtype.type(8 * difference.itemsize - 1)
    out: np.ndarray = (difference << 1) ^ -(difference >> bits)
    return out


def _signed(words: np.ndarray) -> np.ndarray:
    """Undo `_unsigned`."""
    out: np.ndarray = (words >> 1) ^ -(words & 1)
    return out


def _planes(words: np.ndarray) -> bytes:
    return np.ascontiguousarray(words.view(np.uint8).reshape(words.size, words.itemsize).T).tobytes()


# -- applying ------------------------------------------------------------------------------------------------


def _checked(header: dict[str, Any], parts: Mapping[str, np.ndarray]) -> dict[str, tuple[str, bytes]]:
    """Return how each changed array is stored, and its bytes; raise FormatError unless an update says so."""
    match header:
        case {"old": str(), "new": str(), "size": int(size), "arrays": dict(arrays)} if len(header) == 4 and size >= 0:
            pass
        case _:
            raise FormatError("header: expected old, new, size and arrays, got others")
    if set(parts) != {"header", "data"} or any(a.dtype != np.uint8 or a.ndim != 1 for a in parts.values()):
        raise FormatError("arrays: expected the vectors header and data of uint8, got others")
    records, data, start = {}, parts["data"].tobytes(), 0
    for name, record in arrays.items():
        match record:
            case ["whole" | "difference" as kind, int(nbytes)] if 0 <= nbytes <= len(data) - start:
                records[name] = (kind, data[start : start + nbytes])
                start += nbytes
            case _:
                raise FormatError(f"array {name!r}: expected whole or difference, and bytes, got {describe(record)}")
    if start != len(data):
        raise FormatError(f"data: expected {start} bytes, those of {len(records)} arrays, got {len(data)}")
    return records


def _new_bytes(
    header: Mapping[str, Any],
    records: Mapping[str, tuple[str, bytes]],
    parts: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray],
) -> bytes:
    """Return the new file; nothing is allocated for which neither the old file nor the update's size accounts."""
    packed = parts["header"].tobytes()
    document = header_document(packed, header["size"])
    if document["kind"] != "model":
        raise FormatError(f"expected the update of a model file, got that of a {document['kind']} file")
    index = {name: (np.dtype(dtype), tuple(shape)) for name, (dtype, shape) in document["arrays"].items()}
    if unknown := sorted(set(records) - set(index)):
        raise FormatError(f"arrays: expected those of the new file, got {unknown[:5]}")
    whole = sum(math.prod(index[n][1]) * index[n][0].itemsize for n, (kind, _) in records.items() if kind == WHOLE)
    if whole > (limit := _limit(parts)):
        raise FormatError(f"arrays: expected at most {limit} bytes of whole ones in an update of its size, got {whole}")
    arrays = {
        name: _new_array(name, dtype, shape, base.get(name), *records.get(name, (None, b"")))
        for name, (dtype, shape) in index.items()
    }
    content = container_from(packed, header["size"], document["header"], arrays)
    if _sha256(content) != header["new"]:
        raise FormatError(f"expected a new file of SHA-256 {header['new']}, got {_sha256(content)}")
    graph_of(document["header"], arrays, "the new file")
    return content


def _new_array(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], old: np.ndarray | None, kind: str | None, piece: bytes
) -> np.ndarray:
    """Return an array of the new file: whole, or from the old one, as it is or with a difference."""
    if kind == WHOLE:
        words = _piece_words(name, piece, dtype, shape)
    elif old is None or (old.dtype, old.shape) != (dtype, shape):
        got = "none" if old is None else describe(old)
        raise FormatError(f"array {name!r}: expected one of {dtype} and shape {shape} in the old file, got {got}")
    elif kind is None:
        return old
    else:
        words = _signed(_piece_words(name, piece, dtype, shape)) + _words(old)
    if dtype == np.bool_ and words.max(initial=0) > 1:
        raise FormatError(f"array {name!r}: expected bytes 0 and 1, got others")
    return words.view(dtype).reshape(shape)


def _piece_words(name: str, piece: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Return the words of an array from its bytes in an update; no more are made than it has."""
    nbytes = math.prod(shape) * dtype.itemsize
    if len(piece) != nbytes:
        piece = inflated(piece, nbytes, f"array {name!r}", "deflated bytes")
    planes = np.frombuffer(piece, np.uint8).reshape(dtype.itemsize, math.prod(shape))
    return np.ascontiguousarray(planes.T).view(f"u{dtype.itemsize}").reshape(-1)
