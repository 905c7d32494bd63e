"""Reads an HDF5 file of unknown origin, in a process of its own: such files crash libhdf5, and hang it.

A program that imports nothing of pqnet. To its standard output it writes lines of JSON: for every array of the file
that its argument names one with name, dtype and shape, and for each part of its numbers one that says how many bytes
follow; last ``end``, or at any place what is wrong. Asked for ``headers`` it writes no numbers, and for
``[name, [[start, stop], ...]]`` these rows of one array.
"""

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

PIECE = 1 << 23  # bytes at a time
MEMORY = 1 << 30  # bytes of addresses, besides those of the data
MESSAGE = "the HDF5 data cannot be read: "


class RefusedError(Exception):
    """What is wrong with a file."""


def limit_process(nbytes: int, seconds: int) -> None:
    """Let this process have so many bytes more than it needs anyway, and seconds of CPU."""
    try:
        import resource
    except ImportError:  # not POSIX
        return
    wanted = {resource.RLIMIT_AS: MEMORY + 2 * nbytes, resource.RLIMIT_CPU: seconds, resource.RLIMIT_CORE: 0}
    for what, most in wanted.items():
        limit = min([most, *(limit for limit in resource.getrlimit(what) if limit != resource.RLIM_INFINITY)])
        resource.setrlimit(what, (limit, limit))


def arrays_of(file: h5py.File, limit: int) -> dict[str, h5py.Dataset]:
    """Return the arrays of a file, or raise RefusedError."""
    links: dict[str, Any] = {}
    file.visititems_links(lambda name, link: links.update({name: link}))
    found: dict[str, h5py.Dataset] = {}
    for name, link in links.items():
        if not isinstance(link, h5py.HardLink):
            raise RefusedError(f"{name!r} is a link to other data; store the array itself")
        item = file[name]
        if isinstance(item, h5py.Group):
            continue
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiub" or item.dtype.itemsize > 8:
            got = item.dtype if isinstance(item, h5py.Dataset) else "no dataset"
            raise RefusedError(f"{name!r}: expected floats up to float64, integers or booleans, got {got}")
        if item.is_virtual or item.external:
            raise RefusedError(f"{name!r} keeps its data in another file; store the array itself")
        found[name] = item
    if not found:
        raise RefusedError("the file holds no arrays")
    total = sum(math.prod(item.shape) * item.dtype.itemsize for item in found.values())
    if total > limit:
        raise RefusedError(f"expected at most {limit} bytes of arrays in a file of this size, got {total}; store them "
                           "uncompressed")  # fmt: skip
    return found


def pieces_of(item: h5py.Dataset, begin: int, end: int) -> Iterator[np.ndarray]:
    """Yield rows of an array in parts, in the byte order of the machine."""
    dtype = item.dtype.newbyteorder("=")
    if not item.shape:
        yield np.asarray(item[()], dtype)
        return
    rows = max(1, PIECE // max(1, math.prod(item.shape[1:]) * dtype.itemsize))
    for start in range(begin, end if item.size else begin, rows):
        yield np.ascontiguousarray(item[start : min(start + rows, end)], dtype)


def main(path: str, limit: int, seconds: int, what: str = "") -> None:
    """Write the arrays of a file or what is asked of them, or what is wrong with it."""
    limit_process(limit, seconds)
    out = sys.stdout.buffer

    def tell(**record: Any) -> None:
        out.write(json.dumps(record).encode() + b"\n")

    try:
        with h5py.File(path, "r") as file:
            for name, item in arrays_of(file, limit).items():
                ranges = [(0, item.shape[0] if item.shape else 1)]
                if what not in ("", "headers"):
                    wanted, given = json.loads(what)
                    if name != wanted:
                        continue
                    if not item.shape:
                        raise RefusedError(f"{name!r}: expected rows of samples, got one number")
                    ranges = [(min(begin, item.shape[0]), min(end, item.shape[0])) for begin, end in given]
                shape = (sum(end - begin for begin, end in ranges), *item.shape[1:]) if item.shape else ()
                tell(name=name, dtype=item.dtype.newbyteorder("=").name, shape=shape)
                for begin, end in () if what == "headers" else ranges:
                    for piece in pieces_of(item, begin, end):
                        tell(bytes=piece.nbytes)
                        out.write(piece.data)
    except RefusedError as reason:
        tell(error=str(reason))
    except Exception as reason:  # h5py raises exceptions of many classes for malformed structures
        tell(error=f"{MESSAGE}{reason}")
    else:
        tell(end=True)
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
