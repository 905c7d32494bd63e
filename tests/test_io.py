"""Containers: what is written comes back, damage and forgery are found, and writing is all or nothing."""

import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from forge import FIELDS, document_of, envelope, forge, reseal, seal, user_block
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pqnet.errors import FormatError, PQNetError
from pqnet.io import container as container_module
from pqnet.io import read_arrays, read_container, write_container
from pqnet.io.hdf5_layout import DTYPES, hdf5_frame

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small file with vectors of three dtypes."""
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False]), "c": np.uint8([7])}
    write_container(tmp_path / "small.h5", "model", {"note": "ä\n", "list": [1, 2.5, None, True]}, arrays)
    return tmp_path / "small.h5"


# -- container: round trips ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=8),
        st.sampled_from(list(DTYPES)).flatmap(
            lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
        ),
        max_size=6,
    )
)
def test_arrays_come_back_as_they_were(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "a.h5"
    write_container(path, "statistics", {}, arrays)
    header, back = read_container(path, "statistics")
    assert header == {} and list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()  # NaN bits too
        assert back[name].flags.owndata and back[name].flags.writeable


def test_strided_arrays_and_all_of_the_header_come_back(tmp_path: Path) -> None:
    x = np.arange(24.0).reshape(4, 6)
    header = {"text": "ä\n\0\ud800", "list": [1, -(2**63) + 1, 2.5, 1e-320, None, True, {"": []}], "tuple": (1, 2)}
    write_container(tmp_path / "a.h5", "model", header, {"t": x.T, "s": x[::2, ::-3]})
    back, arrays = read_container(tmp_path / "a.h5", "model")
    assert back == header | {"tuple": [1, 2]} and list(back) == list(header)
    assert np.array_equal(arrays["t"], x.T) and np.array_equal(arrays["s"], x[::2, ::-3])


def test_hdf5_reads_every_dtype(tmp_path: Path) -> None:
    """libhdf5 is the reference for structures that pqnet lays out itself."""
    rng = np.random.default_rng(0)
    arrays = {d: (rng.standard_normal(5) * 100).astype("int8" if d == "bool" else d).astype(d) for d in DTYPES}
    arrays |= {f"{d}, more": a[:3] for d, a in arrays.items()}
    write_container(tmp_path / "a.h5", "model", {"n": 1}, arrays)
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file) == {"header", *DTYPES} and file.userblock_size == 512
        for dtype in DTYPES:
            assert file[dtype].dtype == dtype and file[dtype].id.get_offset() % DTYPES[dtype] == 0
            assert np.array_equal(file[dtype][()], np.concatenate([arrays[dtype], arrays[f"{dtype}, more"]]))
        assert json.loads(file["header"][0])["arrays"]["bool, more"] == ["bool", [3]]


@pytest.mark.parametrize("length", [1, 200, 255, 256, 5000, 65536, 300_000])
def test_hdf5_reads_headers_of_every_length(tmp_path: Path, length: int) -> None:
    write_container(tmp_path / "a.h5", "model", {"text": "x" * length}, {})
    assert document_of(tmp_path / "a.h5")[0]["header"] == {"text": "x" * length}


def test_overhead_of_many_arrays_is_small(tmp_path: Path) -> None:
    arrays = {f"layer{i // 4}.block{i}.batch_norm.{i % 4}": np.zeros(64 + i, np.float32) for i in range(400)}
    write_container(tmp_path / "a.h5", "model", {}, arrays)
    assert (tmp_path / "a.h5").stat().st_size - sum(a.nbytes for a in arrays.values()) < 1200 + 12 * len(arrays)


def test_equal_content_gives_equal_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom pqnet.io import write_container\n"
        "arrays = {n: np.arange(9, dtype=n) for n in ('uint8', 'int64')}\n"
        "write_container(sys.argv[1], 'model', {'a': [1, 2]}, arrays)"
    )
    contents = []
    for i in range(2):
        environment = os.environ | {"PYTHONHASHSEED": str(i), "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / f"{i}.h5")], check=True, env=environment)
        contents.append((tmp_path / f"{i}.h5").read_bytes())
    assert contents[0] == contents[1]


def test_files_name_their_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    for version, writer in ((lambda name: f"{name} 1.2", "pqnet pqnet 1.2"), (missing, "pqnet")):
        monkeypatch.setattr(metadata, "version", version)
        container_module._writer.cache_clear()
        write_container(tmp_path / "a.h5", "model", {}, {})
        assert document_of(tmp_path / "a.h5")[0]["writer"] == writer
    container_module._writer.cache_clear()


def test_bytes_of_version_1_stay_as_they_are() -> None:
    """The structures around the data are compared on loading, so that no release may change a byte of them."""
    frame = hdf5_frame(300, 200, dict.fromkeys(set(DTYPES) - {"int32", "int16", "int8"}, 3))
    digest = hashlib.sha256(frame.superblock + frame.tail).hexdigest()
    assert digest == "60f8e13fda89b76d3a05155252daecf6aff37456ee251897235b301627f11ebf"


# -- container: damage ---------------------------------------------------------------------------------------


def test_every_changed_byte_is_found(small: Path) -> None:
    data = small.read_bytes()
    for i in range(len(data)):
        for flip in (1, 0x80):
            small.write_bytes(data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :])
            with pytest.raises(FormatError, match=r"damaged|expected a pqnet file|version"):
                read_container(small, "model")


def test_every_truncation_is_found(small: Path) -> None:
    data = small.read_bytes()
    for n in range(len(data)):
        small.write_bytes(data[:n])
        with pytest.raises(FormatError, match=r"truncated|expected a pqnet file|expected .* bytes, got"):
            read_container(small, "model")


@pytest.mark.parametrize("more", [b"\0", b"x", bytes(512)])
def test_appended_bytes_are_found(small: Path, more: bytes) -> None:
    small.write_bytes(small.read_bytes() + more)
    with pytest.raises(FormatError, match=r"damaged: expected \d+ bytes, got \d+"):
        read_container(small, "model")


def test_a_file_that_changes_while_it_is_read_is_found(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = container_module._check_block

    def grow(block: bytes, length: int) -> None:
        check(block, length)
        with small.open("ab") as stream:
            stream.write(b"x")

    monkeypatch.setattr(container_module, "_check_block", grow)
    with pytest.raises(FormatError, match="damaged"):
        read_container(small, "model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"PQN", "got only 3 bytes"),
        (b"PK\x03\x04" + bytes(600), "a zip archive .a PyTorch checkpoint.*pqnet convert"),
        (b"\x80\x02}q\x00.", "a Python pickle"),
        (b"\x08" * 600, "a file of another format"),
        (b"PQNET\n\x01\x00", "truncated to 8 bytes"),
        (user_block(512, 0, 0, bytes(32), version=7), r"expected format version 1 or 2, got version 7; update pqnet"),
        (user_block(512, 0, 0, bytes(32))[:-1] + b"x", "unused bytes of its first block are not zero"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(FormatError, match=rf"a\.h5: .*{message}"):
        read_container(tmp_path / "a.h5", "model")


def test_hdf5_of_others_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.ones(3)
    with pytest.raises(FormatError, match="an HDF5 file that pqnet did not write"):
        read_container(tmp_path / "a.h5", "model")


def test_kinds_are_kept_apart(small: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"expected a statistics file, got a model file; open it with pqnet.load"):
        read_container(small, "statistics")
    with pytest.raises(PQNetError, match="kind: expected one of"):
        read_container(small, "recipe")
    with pytest.raises(PQNetError, match="kind: expected one of"):
        write_container(small, "recipe", {}, {})


def test_unreadable_paths(tmp_path: Path) -> None:
    for read in (lambda p: read_container(p, "model"), read_arrays):
        with pytest.raises(PQNetError, match=r"cannot read .*missing\.h5: No such file"):
            read(tmp_path / "missing.h5")
        with pytest.raises(PQNetError, match=r"cannot read .*: Is a directory"):
            read(tmp_path)
        for path in (3, "", "a\0b"):
            with pytest.raises(PQNetError, match="path: expected a file name, got"):
                read(path)


# -- container: writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "arrays", "message"),
    [
        ({}, {"x": [1.0]}, "array 'x': expected a .* array, got list"),
        ({}, {"x": np.ones(1, np.complex64)}, "array 'x': expected .*got complex64"),
        ({}, {"x": np.ones(1, ">f4")}, "array 'x': expected .*use .astype"),
        ({}, {"x": np.array([None])}, "array 'x': expected .*got object"),
        ({}, {"x": np.ones((1,) * 9, np.uint8)}, "at most 8 axes"),
        ({}, {"": np.ones(1)}, "array name: expected a str of 1 to 1000 printable"),
        ({}, {"a\nb": np.ones(1)}, "array name: expected a str of 1 to 1000 printable"),
        ({}, {7: np.ones(1)}, "array name: expected a str of 1 to 1000 printable"),
        ({"a": {"b": float("nan")}}, {}, "header key 'b': expected plain data"),
        ({"a": [np.float32(1)]}, {}, "header key 'a': expected plain data"),
        ({"a": {1: 2}}, {}, "header key 'a': expected str keys"),
        ({"a": 2**63}, {}, "header key 'a': expected an integer of 64 bits"),
        ({"a": "x" * (1 << 24)}, {}, "header: expected at most 16777216 bytes"),
    ],
)
def test_what_a_file_cannot_hold(tmp_path: Path, header: Any, arrays: Any, message: str) -> None:
    with pytest.raises(PQNetError, match=message):
        write_container(tmp_path / "a.h5", "model", header, arrays)
    assert not list(tmp_path.iterdir())


def test_deep_headers_are_refused(tmp_path: Path) -> None:
    header: dict[str, Any] = {}
    header["self"] = header
    with pytest.raises(PQNetError, match="at most 64 levels of nesting"):
        write_container(tmp_path / "a.h5", "model", header, {})


@pytest.mark.parametrize("failure", [KeyboardInterrupt("stop"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_failed_writing_changes_nothing(
    small: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, at: str
) -> None:
    before = small.read_bytes()

    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(os, at, fail)
    expected = PQNetError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match=r"stop|cannot write .*No space left"):
        write_container(small, "model", {}, {"new": np.ones(9)})
    assert small.read_bytes() == before and list(small.parent.iterdir()) == [small]


def test_full_disk_changes_nothing(small: Path) -> None:
    resource = pytest.importorskip("resource")
    before, limits = small.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(PQNetError, match=r"cannot write .*small.h5: File too large"):
            write_container(small, "model", {}, {"new": np.ones(50_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert small.read_bytes() == before and list(small.parent.iterdir()) == [small]


def test_unwritable_paths(tmp_path: Path) -> None:
    with pytest.raises(PQNetError, match=r"cannot write .*missing/a.h5: No such file"):
        write_container(tmp_path / "missing" / "a.h5", "model", {}, {})
    with pytest.raises(PQNetError, match=r"path: expected a file name, got .*which is a directory or a device"):
        write_container(tmp_path, "model", {}, {})
    with pytest.raises(PQNetError, match="which is a directory or a device"):
        write_container(os.devnull, "model", {}, {})


def test_symbolic_links_and_permissions_are_respected(small: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.h5"
    link.symlink_to(small)
    write_container(link, "statistics", {}, {})
    assert link.is_symlink() and read_container(small, "statistics") == ({}, {})
    mask = os.umask(0o027)
    try:
        write_container(tmp_path / "a.h5", "model", {}, {})
    finally:
        os.umask(mask)
    assert (tmp_path / "a.h5").stat().st_mode & 0o777 == 0o640


# -- container: forgery --------------------------------------------------------------------------------------


def test_forge_makes_files_that_load(tmp_path: Path) -> None:
    """Otherwise the tests below would prove nothing."""
    path = forge(tmp_path / "a.h5", envelope({"x": ["uint8", [3]]}, {"n": 1}), {"uint8": b"abc"})
    header, arrays = read_container(path, "model")
    assert header == {"n": 1} and arrays["x"].tobytes() == b"abc"


def test_every_changed_byte_of_the_structures_is_found(small: Path) -> None:
    """With the digest renewed, only bytes of the data may change, and only to other data."""
    data = small.read_bytes()
    *_, packed, text, _ = FIELDS.unpack_from(data)
    frame = hdf5_frame(text, packed, {"float32": 6, "bool": 2, "uint8": 1})
    structures = [*range(512, 560), *range(560 + packed, frame.vectors["float32"])]
    for i in [*structures, *range(len(data) - len(frame.tail), len(data))]:
        forged = data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :]
        with pytest.raises(FormatError, match="the file was forged"):
            read_container(seal(small, forged[512:], packed, text), "model")


def external_link(file: h5py.File) -> None:
    file["other"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file: h5py.File) -> None:
    file["other"] = h5py.SoftLink("/float32")


def variable_length(file: h5py.File) -> None:
    file.create_dataset("other", data=["a", "bc"], dtype=h5py.string_dtype())


def attribute(file: h5py.File) -> None:
    file["float32"].attrs["a"] = 1


def hidden_group(file: h5py.File) -> None:
    file.create_group("other")


def huge_dataset(file: h5py.File) -> None:
    del file["float32"]
    file.create_dataset("float32", (1 << 50,), "float32", chunks=(1 << 20,), compression="gzip")


def external_storage(file: h5py.File) -> None:
    del file["float32"]
    file.create_dataset("float32", (6,), "float32", external=[("/etc/passwd", 0, 24)])


@pytest.mark.parametrize(
    "tamper",
    [external_link, soft_link, variable_length, attribute, hidden_group, huge_dataset, external_storage],
)
def test_foreign_hdf5_objects_are_found(small: Path, tamper: Callable[[h5py.File], None]) -> None:
    with h5py.File(small, "r+") as file:
        tamper(file)
    with pytest.raises(FormatError, match="the file was forged"):
        read_container(reseal(small), "model")


INDEX = {"x": ["uint8", [1]]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b" ", "Expecting value"),
        (b"\xff\xfe", "header: "),
        (b"[]", "expected kind, writer, arrays and header"),
        (envelope(INDEX) | {"more": 1}, "expected kind, writer, arrays and header"),
        (envelope(INDEX) | {"kind": "recipe"}, "of the right types, got kind str 'recipe'"),
        (envelope(INDEX) | {"kind": ["model"]}, "of the right types"),
        (envelope(INDEX) | {"writer": 1}, "of the right types"),
        (envelope(INDEX) | {"header": []}, "of the right types"),
        (b'{"kind": "model", "kind": "model"}', "a key appears twice"),
        (envelope(INDEX, {"a": float("nan")}), "expected plain data"),
        (json.dumps(envelope(INDEX, {"a": 1.5})).replace("1.5", "1e999").encode(), "expected plain data"),
        (json.dumps(envelope(INDEX, {"a": 1})).replace(": 1}", ": " + "9" * 5000 + "}").encode(), "header: "),
        (b"[" * 66 + b"]" * 66, "at most 64 levels of nesting"),
        (b"[" * 100_000 + b"]" * 100_000, "at most 64 levels of nesting"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "at most 64 levels of nesting"),
        (envelope([]), "arrays: expected names with dtype and shape, got list"),
        (envelope({"": ["uint8", [1]]}), "array name: expected a str of 1 to 1000"),
        (envelope({"x": ["uint8"]}), "array 'x': expected dtype and shape"),
        (envelope({"x": ["uint8", [1], 1]}), "array 'x': expected dtype and shape"),
        (envelope({"x": ["uint8", 1]}), "array 'x': expected dtype and shape"),
        (envelope({"x": ["uint8", [-1]]}), "array 'x': expected dtype and shape"),
        (envelope({"x": ["uint8", [1.0]]}), "array 'x': expected dtype and shape"),
        (envelope({"x": ["uint8", [True]]}), "array 'x': expected dtype and shape"),
        (envelope({"x": ["uint8", [1] * 9]}), "array 'x': expected dtype and shape"),
        (envelope({"x": ["object", [1]]}), "array 'x': expected dtype and shape"),
        (envelope({"x": ["O", [1]]}), "array 'x': expected dtype and shape"),
        (envelope({"x": ["uint8", [0, 1 << 62, 1 << 62]]}), "array 'x': expected dtype and shape"),
        (envelope({"x": ["uint8", [1 << 39]]}), "arrays: expected at most"),
        (envelope({f"x{i}": ["uint8", [1 << 39]] for i in range(9)}), "arrays: expected at most"),
        (envelope({"x": ["uint8", [2]]}), "the file was forged"),
        (envelope({"x": ["uint8", [1]], "y": ["uint8", [1]]}), "the file was forged"),
        (envelope({"x": ["bool", [1]]}), "the file was forged"),
        (envelope({}), "the file was forged"),
    ],
)
def test_forged_documents(tmp_path: Path, document: Any, message: str) -> None:
    path = forge(tmp_path / "a.h5", document, {"uint8": b"a"})
    with pytest.raises(FormatError, match=rf"a\.h5: .*{message}"):
        read_container(path, "model")


def test_forged_bool_bytes(tmp_path: Path) -> None:
    path = forge(tmp_path / "a.h5", envelope({"x": ["bool", [2]]}), {"bool": b"\1\2"})
    with pytest.raises(FormatError, match="array 'x': expected bytes 0 and 1"):
        read_container(path, "model")


def test_forged_compression(tmp_path: Path) -> None:
    path, text = tmp_path / "a.h5", json.dumps(envelope({})).encode()
    for packed, message in [
        (b"no zlib stream at all", "header: .*incorrect header check"),
        (zlib.compress(text)[:-1], r"expected \d+ bytes of deflated text"),
        (zlib.compress(text) + b"x", r"expected \d+ bytes of deflated text"),
        (zlib.compress(text + b" "), r"expected \d+ bytes of deflated text"),
        (
            zlib.compress(bytes(1 << 26)),
            r"expected \d+ bytes of deflated text",
        ),  # a bomb: only the bound is inflated
    ]:
        with pytest.raises(FormatError, match=message):
            read_container(forge(path, text, packed=packed), "model")
    with pytest.raises(FormatError, match="header: expected at most 16777216 bytes, got 16777217"):
        read_container(forge(path, b" " * (1 << 24) + b"1"), "model")


def test_headers_of_too_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, arrays = tmp_path / "a.h5", {f"{i}": np.ones(0, np.bool_) for i in range(8)}
    monkeypatch.setattr(container_module, "MAX_ARRAYS", 7)
    with pytest.raises(PQNetError, match="arrays: expected at most 7, got 8"):
        write_container(path, "model", {}, arrays)
    with pytest.raises(FormatError, match="arrays: expected at most 7, got 8"):
        read_container(forge(path, envelope({name: ["bool", [0]] for name in arrays})), "model")
    monkeypatch.setattr(container_module, "MAX_VALUES", 99)
    for content in ("," * 100, [[]] * 60):
        with pytest.raises(PQNetError, match=r"header: expected at most 99 values \(commas and brackets\), got 1"):
            write_container(path, "model", {"a": content}, {})
        with pytest.raises(FormatError, match=r"header: expected at most 99 values \(commas and brackets\), got 1"):
            read_container(forge(path, envelope({}, {"a": content})), "model")


# -- arrays of others ----------------------------------------------------------------------------------------


def test_arrays_of_plain_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "b": rng.standard_normal((3, 4)),
        "a/deep/er": rng.standard_normal((2, 2)).astype(np.float16),
        "a/x": np.float32(3).reshape(()),
        "ids": rng.integers(0, 9, (3, 4)),
        "bytes": np.arange(4, dtype=np.uint8),
        "mask": rng.random((3, 4)) < 0.5,
    }
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **({"compression": "gzip"} if array.ndim else {}))
        file["big"] = arrays["b"].astype(">f4")
        file["again"] = file["b"]
        file["a/cycle"] = file["a"]
    back = read_arrays(tmp_path / "a.h5")
    assert {"again", "big", *arrays} <= set(back) and back["big"].dtype == np.dtype("=f4")
    for name, array in {**arrays, "again": arrays["b"]}.items():
        assert back[name].dtype == array.dtype and np.array_equal(back[name], array)


def plain_file(path: Path, fill: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "w") as file:
        fill(file)
    return path


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda f: None, "the file holds no arrays"),
        (
            lambda f: f.create_dataset("c", data=[1j]),
            "'c': expected floats up to float64, integers or booleans, got complex128",
        ),
        (
            lambda f: f.create_dataset("s", data=["a"]),
            "'s': expected floats up to float64, integers or booleans, got object",
        ),
        (lambda f: f.__setitem__("t", np.dtype("f4")), "'t': expected .*got no dataset"),
        (lambda f: f.__setitem__("l", h5py.SoftLink("/x")), "'l' is a link to other data; store the array itself"),
        (lambda f: f.__setitem__("l", h5py.ExternalLink("b.h5", "/x")), "'l' is a link to other data"),
        (
            lambda f: f.create_dataset("e", (2,), "f4", external=[("b.bin", 0, 8)]),
            "'e' keeps its data in another file; store the array itself",
        ),
    ],
)
def test_unusable_plain_files(tmp_path: Path, fill: Callable[[h5py.File], None], message: str) -> None:
    with pytest.raises(FormatError, match=rf"a\.h5: {message}"):
        read_arrays(plain_file(tmp_path / "a.h5", fill))


def test_damaged_plain_files(tmp_path: Path, small: Path) -> None:
    path = plain_file(tmp_path / "a.h5", lambda f: f.create_dataset("x", data=np.ones(1000)))
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(FormatError, match=r"a\.h5: the HDF5 data cannot be read: "):
        read_arrays(path)
    path.write_bytes(b"x" * 1000)
    with pytest.raises(FormatError, match="expected an HDF5 file, got a file of another format"):
        read_arrays(path)
    with pytest.raises(FormatError, match="expected a plain HDF5 file of arrays, got a pqnet file"):
        read_arrays(small)
