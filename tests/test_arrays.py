"""Arrays in damaged and hostile files of others: one error, at little cost."""

import base64
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pqnet import PQNetError
from pqnet.io import read_arrays, read_numpy

# Found by changing bytes of good files: libhdf5 crashes on the first, and would read the second for ever.
HOSTILE = {
    "crash": (
        "eNrtmU1ME0EUx2d2W135kC3yWVCqolZFQKmKgrZFihwqNIIJB00aEeyhiY1AQlRij3gznjhy5NijRxIvHI0H02OP3vTIre52/7PdHSlVNAbC"
        "+19+nd23b2bfvtmdN303PjpWX+OvYaY0jXmYzpwqQrk+d1ucT4IcXAU3FHGcl8614bgP/mW76YexmGldlCT66fdY1BjpMGo8Fk2YnEE7AG4p"
        "brtl8Dm4IOXn4B/2y42M4w4HnAUtKtyVj5WoGplvWvoCXcyDkbdqrPUtznvhX1Eth7XGHZo/uGqdV0rnOVtILc3Pp+fgw9CKeVxl6VfzpaZ5"
        "3GtcGLH7teaZcc3ibGru5cA1MS5rJqqKuuwVXVjDLbnWcV3+JOIuxWNqYnKU294Zy7W645tHe7vdopj3gVO7x1nEK6Aejnw233fcCLn8vjtf"
        "5bpcQ/mhOSnrK+xOo+2pYLcNuzNoH6lg1+7+LNh2WhX/JBKJRCLtM+UoBKSDJmOdXWhhviyLZNc3C0wP9EcSyQwLR4xCPJpkPBqd/d78ybRq"
        "Znp29f3a+kbu4+bW53zh24/taMFjWvROKE8sPw0erU5vausMdAd7+kODwyOmwciI+mElAxeR0fF4YnrmcfJZKp1ZXH4DiwfxLy0Y0J7FpNJM"
        "sUsX95LSKy05j0pLz2NgDVgL1oH14HEQK167hPGBjeAJsAlsBnHDDBWOXdqg0mF+sAPsBFFJMVEBdUklrFiiiyX4WbAbPAeK0uACGAQvgpfA"
        "y2APeAXsBfvElgp4FUSFyAbAEHgdvAHelErpW+BtcAgcBu+Ad8GwuwAJ06QmkUik3/r+77yfLu+7VdtPz3a4P4KkwyV5P13kU5vfbfcUnJUW"
        "a5E956/3L/fTg1b+K5YLXROuNDYWjU/FSrn/KCYGa++vK1YH9v43H9J3vpPUf30O1n66Yt9fxr+7vZivW52Uw/82r3Q7nzRHXlTOn9e6VLeI"
        "N+u+iEcdxm/mVpMx6iVRrBh1l448ckaGO4qtXFd5rv8aV7d9+f+tsB23UC0LFVVWLX6N7icgtEbJvIvu35uMc8eLgEtFcmounX7hsM83UMxI"
        "JBKJRCKRSCQSiUQ6aPoJeGOu9w=="
    ),
    "hang": (
        "eNrtmM9PE0EUx3d2W1xbkC1WrW0F/IHWn6BWwZ+V2CIHIgY08aiSIocmkBQTTsYDMXjzaLzo0Xjqn0HiP9CjJ88ce7Luj++ss69dGhtjQN43"
        "aT6dnbeznbdvpu/Nu+niVF8sHdMcmaYW0SxNVROqjQbbsv8ZKMAN8Isurwu3L4XrCYxP7R7PlUqOdZNIPmcs4tHUWCES//PkpkuTjxw+RXsY"
        "3NSDdmvgS7BKnDPxx041vXuFbOc86kLGo1DjksavhXivHwuulyjG1Q1voLi24rYFntNj3ye0pFZdeF4pLy8uVsur7nU53f1gRJlbNwFgYmUa"
        "urEW9S4Z+LRdcfMPZ4vC7pa7RO1I8Nl1tBtHPcp1PzHY6XfgvRp7Y7E6+52w3yKNl0yH+2r9Hqkdddu3ELse0v5B7MLcL6z2dtQ+G2JHnzsO"
        "u3RIv9RciB19biXEjo771mrvD3U9sVgsFovFYu0kOTm6SRP9hr46srXhdrXkb8X1r4n3bldLivV6/Wei4Xalwu/KhHcNth3QyaDMMZo+5j42"
        "t9yeq6E912lP41NzC1+7Fi2OdZI/RhS/qvngPlKXyPwwBsbBXrAPPAAirfbrpAQ4AB4Ek+Ah8DCIMsqvn1BO+fmtfC1ZEOWlJt/JEKmTj4Mn"
        "wJPgKXAEPA2eAXPgWfAceB68AF4EL4Gj8twGvAxeAWUY5MFroAyCcVKv3wBvgrfA2+Ad8C5YCC6QAu8cLBZrtyvsPJ2eu3U6T3+TCf4/sfaW"
        "6Hm6jKdUOmj3AlwgedS9ruM32uk8fVsatr0b/7o3hCUP4G2LqcmZ+ZIb+09K8sf65+y6jnN6nHeLz1b7mSz90/fgnafr/vxW0tvby/W6meUY"
        "/rtxZfnxZCpxER4/3y1SUsiddUf4Q51PRKkEejEvJ+aS9mxeyfrCLpUsxJfqMaHUR7Wh33tAq7+D9obtJ+d7Yrjg+zMf1/JNQ+vk14Hgm5H6"
        "wEFu68H92RmhbASC1K9L5UplWbGv97PPWCwWi8VisVgsFovF2m36BYeTrMI="
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_crash_or_hang_libhdf5(name: str) -> None:
    Path("a.h5").write_bytes(zlib.decompress(base64.b64decode(HOSTILE[name])))
    with pytest.raises(PQNetError, match=r"a\.h5: (the HDF5 data cannot be read|expected at most 67108864 bytes)"):
        read_arrays("a.h5")


@pytest.mark.parametrize("chunk", [1 << 20, 1 << 28])
def test_hdf5_that_stands_for_much_more_than_its_bytes(chunk: int) -> None:
    with h5py.File("a.h5", "w") as file:
        file.create_dataset("x", (1 << 28,), "f4", chunks=(chunk,), compression="gzip")
    with pytest.raises(PQNetError, match="expected at most 67108864 bytes of arrays .*, got 1073741824; store"):
        read_arrays("a.h5")


def test_hdf5_larger_than_a_piece_comes_back(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(5_000_000.0).reshape(2, -1),
        "b": np.float32(3),
        "c": np.zeros((3, 0, 2)),
        "d": np.ones(9, ">i2"),
    }
    with h5py.File("a.h5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip" if name == "a" else None)
    got = read_arrays("a.h5")
    assert list(got) == list(arrays)
    for name, array in arrays.items():
        assert got[name].dtype == np.asarray(array).dtype.newbyteorder("=") and got[name].shape == np.shape(array)
        assert np.array_equal(got[name], array) and got[name].flags.writeable


def npy(header: str, nbytes: int = 8) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(nbytes)


def shaped(shape: str, descr: str = "<f4") -> bytes:
    return npy(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n")


def zipped(change: Callable[[bytearray, int], None] = lambda *_: None, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive with one array, changed by a function of its bytes and the place of its directory."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("x.npy", shaped("(2,)"))
    data = bytearray(stream.getvalue())
    change(data, data.find(b"PK\1\2"))
    return bytes(data)


def with_flags(flags: int) -> bytes:
    def change(data: bytearray, directory: int) -> None:
        data[6] |= flags
        data[directory + 8] |= flags

    return zipped(change)


def with_method(method: int) -> bytes:
    def change(data: bytearray, directory: int) -> None:
        data[8:10] = data[directory + 10 : directory + 12] = struct.pack("<H", method)

    return zipped(change)


def damaged(place: int) -> bytes:
    def change(data: bytearray, directory: int) -> None:
        data[directory + place] ^= 1

    return zipped(change)


DAMAGED = {
    "open bracket": npy("("),
    "open string": npy("{'descr': '<f4', 'fortran_order': \"False, 'shape': (2,), }"),
    "mixed keys": npy("{1:2,'a':3}"),
    "indented": npy("  x\n y"),
    "nested": npy("(" * 5000),
    "huge": shaped("(99999999999999999999,)"),
    "large": shaped("(100000000000,)"),
    "of empty axes": shaped("(0, 99999999999999999999)"),
    "negative": shaped("(-1, -2)"),
    "true": shaped("(True,)"),
    "objects": shaped("(2,)", "O"),
    "version 9": b"\x93NUMPY\x09\0" + bytes(99),
    "cut": shaped("(2,)")[:-1],
    "long": shaped("(2,)") + b"1",
    "empty": b"",
    "text": b"1 2 3",
    "pickle": b"\x80\x04K\x01.",
    "encrypted": with_flags(1),
    "patched": with_flags(32),
    "of another method": with_method(9),
    "lzma": zipped(method=zipfile.ZIP_LZMA),
    "no directory": zipped()[:-30],
    "flipped number": damaged(-1),
    "flipped checksum": damaged(16),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_numpy_files(name: str) -> None:
    Path("a.npz").write_bytes(DAMAGED[name])
    with pytest.raises(PQNetError, match=r"a\.npz: expected a readable \.npy, \.npz or \.h5 file of numbers, got: "):
        read_numpy("a.npz")


def test_compressed_arrays_have_a_limit_that_uncompressed_ones_have_not() -> None:
    zeros = np.zeros(9_000_000)
    np.savez_compressed("bomb.npz", x=zeros)
    with pytest.raises(PQNetError, match="more than 67108864 bytes of arrays for a file of its size, 72000128; use nu"):
        read_numpy("bomb.npz")
    np.savez("good.npz", x=zeros)
    assert np.array_equal(read_numpy("good.npz")["x"], zeros)
    np.savez_compressed("small.npz", x=zeros[:8_000_000], y=np.array(1))
    assert {name: array.shape for name, array in read_numpy("small.npz").items()} == {"x": (8_000_000,), "y": ()}


def test_numpy_arrays_are_read_from_an_open_file() -> None:
    x = np.arange(6).reshape(2, 3)
    for save, read in ((np.save, lambda got: got), (np.savez, lambda got: got["arr_0"])):
        stream = io.BytesIO()
        save(stream, x)
        assert np.array_equal(read(read_numpy(stream)), x)
    with pytest.raises(PQNetError, match=r"array: expected a readable \.npy"):
        read_numpy(io.BytesIO(b"x"))


def test_archives_with_two_arrays_of_one_name_or_something_before_them_are_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("x", "x.npy"):  # NumPy's names of both are x
            archive.writestr(name, npy_of(np.zeros(2)))
    with pytest.raises(PQNetError, match="two arrays of the name 'x'"):
        read_numpy(stream)
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    assert read_numpy(empty) == {}
    with pytest.raises(PQNetError, match=r"expected a readable \.npy"):
        read_numpy(io.BytesIO(b"PK" + empty.getvalue()))


def npy_of(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
