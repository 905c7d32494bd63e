"""Updates of model files: the new file to the byte, small ones for what training changes, and hostile ones refused."""

import hashlib
import json
import os
import re
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge import document_of, forge

import pqnet
from pqnet import FormatError, Model, PQNetError
from pqnet.cli.main import main
from pqnet.demo import model_path
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.io import Golden, load_graph, read_container, save_graph, write_container


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized network."""
    path = tmp_path_factory.mktemp("update") / "small.h5"
    model = pqnet.quantize(pqnet.load(model_path()), "small-blocks", metric="none")
    model.with_golden(model.draw_golden()).save(path)
    return path


def changed(path: Path, output: str, change: Callable[[str, np.ndarray], np.ndarray], **meta: Any) -> Path:
    """Write a model file with arrays changed by their names."""
    header, arrays = read_container(path, "model")
    header["meta"] |= meta
    write_container(output, "model", header, {name: change(name, array) for name, array in arrays.items()})
    return Path(output)


def trained(name: str, array: np.ndarray, rate: float = 0.01) -> np.ndarray:
    """Return an array as training leaves it, codes as they are."""
    if array.dtype.kind != "f":
        return array
    noise = np.random.default_rng(len(name)).standard_normal(array.shape)
    return (array * (1 + rate * noise)).astype(array.dtype)


def there_and_back(old: Path, new: Path) -> int:
    """Patch by the difference of two files, compare bytes, and return the size of the update."""
    pqnet.diff(old, new, "update.pqd")
    pqnet.patch(old, "update.pqd", "patched.h5")
    assert Path("patched.h5").read_bytes() == new.read_bytes()
    return os.path.getsize("update.pqd")


def test_codebooks_scales_biases_and_norms(small: Path) -> None:
    new = changed(small, "new.h5", trained, note="trained")
    _, arrays = read_container(small, "model")
    floats = sum(a.nbytes for a in arrays.values() if a.dtype.kind == "f")
    assert there_and_back(small, new) < 0.9 * floats + 6000  # codes are not in it; the header is, of 5 kB
    header, _ = read_container("update.pqd", "update")
    assert set(header["arrays"]) == {name for name, a in arrays.items() if a.dtype.kind == "f" and a.any()}
    assert there_and_back(small, changed(small, "near.h5", lambda n, a: trained(n, a, 1e-3))) < 0.7 * floats + 6000


def test_any_two_model_files(small: Path) -> None:
    large = Path("large.h5")
    pqnet.quantize(pqnet.load(model_path()), "large-blocks", metric="none").save(large)
    b = GraphBuilder({"x": ValueInfo(("n", 4)), "i": ValueInfo(("n", 4), "int64")}, {"n": 2})
    Model(b.build({"sum": b.add("add", "x", "x"), "twice": b.add("mul", "i", scalar=2)})).save("nothing.h5")
    renamed, graph = Path("renamed.h5"), load_graph(small)[0]
    nodes = [replace(n, params={role: name + "_" for role, name in n.params.items()}) for n in graph.nodes]
    Model(replace(graph, nodes=nodes, params={name + "_": p for name, p in graph.params.items()})).save(renamed)
    files = [small, large, Path("nothing.h5"), renamed, Path(model_path())]
    for old in files:
        for new in files:
            there_and_back(old, new)


def test_changed_codes_take_what_changed(small: Path) -> None:
    def change(name: str, array: np.ndarray) -> np.ndarray:
        out = array.copy()
        if name.endswith("codes"):
            out.reshape(-1)[::200] ^= 1
        return out

    codes = sum(a.nbytes for n, a in read_container(small, "model")[1].items() if n.endswith("codes"))
    assert there_and_back(small, changed(small, "new.h5", change)) < 0.2 * codes + 7000


def test_numbers_without_an_order() -> None:
    """NaN, infinities, both zeros, and the ends of the integers: differences are of bits."""
    shape = ("n", 8)
    b = GraphBuilder({"x": ValueInfo(shape), "i": ValueInfo(shape, "int64"), "m": ValueInfo(shape, "bool")}, {"n": 1})
    graph = b.build({"y": b.add("add", "x", "x"), "j": b.add("add", "i", "m")})
    floats = np.float32([[np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -3e38, 1]])
    integers = np.array([[-(1 << 63), (1 << 63) - 1, -1, 0, 1, 2, 3, 4]])
    for name, step in (("a.h5", 1), ("b.h5", -1)):
        x, i = floats[:, ::step].copy(), integers[:, ::step].copy()
        save_graph(name, graph, Golden({}, None, {"x": x, "i": i, "m": i > 0}, {"y": x, "j": i}))
    there_and_back(Path("a.h5"), Path("b.h5"))
    there_and_back(Path("b.h5"), Path("a.h5"))


def test_a_file_of_many_zeros_is_no_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """What deflates a thousandfold is stored as it is where a reader could not tell it from a bomb."""
    monkeypatch.setattr(pqnet.io.arrays, "FREE", 1 << 20)
    for size in (10, 1_000_000):
        b = GraphBuilder({"x": ValueInfo(("n", size))}, {"n": 1})
        y = b.add("linear", "x", name="fc", params={"weight": np.zeros((1, size), np.float32)})
        Model(b.build({"y": y})).save(f"{size}.h5")
    assert there_and_back(Path("10.h5"), Path("1000000.h5")) > 4_000_000


# -- both ends -------------------------------------------------------------------------------------------------


def test_the_ends_are_checked(small: Path) -> None:
    new = changed(small, "new.h5", trained)
    pqnet.diff(small, new, "update.pqd")
    other = changed(small, "other.h5", lambda n, a: trained(n, a, 0.1))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (small, other)]
    want = f"other.h5: expected the file that update.pqd was made for, of SHA-256 {digests[0]}, got one of {digests[1]}"
    with pytest.raises(PQNetError, match=want):
        pqnet.patch(other, "update.pqd", "patched.h5")
    assert not Path("patched.h5").exists()
    pqnet.patch(small, "update.pqd", "patched.h5")
    pqnet.patch("patched.h5", "update.pqd", "patched.h5")  # once more, after a power cut
    assert Path("patched.h5").read_bytes() == new.read_bytes()


def test_a_file_may_be_updated_in_place(small: Path) -> None:
    place = changed(small, "place.h5", lambda n, a: a)
    before = place.read_bytes()
    new = changed(place, "new.h5", trained)
    pqnet.diff(place, new, "update.pqd")
    data = bytearray(Path("update.pqd").read_bytes())
    data[-200] ^= 1
    Path("damaged.pqd").write_bytes(data)
    with pytest.raises(FormatError, match="damaged.pqd: the file is damaged: its content does not match its checksum"):
        pqnet.patch(place, "damaged.pqd", place)
    assert place.read_bytes() == before
    pqnet.patch(place, "update.pqd", place)
    assert place.read_bytes() == new.read_bytes()


def test_files_of_other_kinds(small: Path) -> None:
    pqnet.diff(small, small, "update.pqd")
    Path("text.h5").write_text("text")
    with pytest.raises(FormatError, match="expected a model file, got an update file; open it with pqnet.patch"):
        pqnet.load("update.pqd")
    with pytest.raises(FormatError, match="expected an update file, got a model file; open it with pqnet.load"):
        pqnet.patch(small, small, "new.h5")
    for call in (lambda: pqnet.diff("text.h5", small, "u.pqd"), lambda: pqnet.patch("text.h5", "update.pqd", "n.h5")):
        with pytest.raises(FormatError, match="text.h5: expected a pqnet file, got only 4 bytes"):
            call()
    with pytest.raises(PQNetError, match="path: cannot read none.pqd: No such file"):
        pqnet.patch(small, "none.pqd", "new.h5")


def test_on_the_command_line(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(small, "new.h5", trained)
    assert main(["diff", str(small), "new.h5", "-o", "update.pqd"]) == 0
    share = os.path.getsize("update.pqd") / os.path.getsize("new.h5")
    assert f"update.pqd: {os.path.getsize('update.pqd')} bytes, {share:.2%} of new.h5" in capsys.readouterr().out
    assert main(["patch", str(small), "update.pqd", "-o", "patched.h5"]) == 0
    assert Path("patched.h5").read_bytes() == Path("new.h5").read_bytes()
    assert main(["patch", str(small), "update.pqd", "-o", "none/patched.h5"]) == 2
    assert "--output: expected a file in an existing folder" in capsys.readouterr().err


# -- hostile updates -------------------------------------------------------------------------------------------


def forged(change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> None:
    """Change header and vectors of update.pqd, with right checksums, and write forged.pqd."""
    document, vectors = document_of(Path("update.pqd"))
    sizes = [document["arrays"][name][1][0] for name in ("header", "data")]
    parts = {"header": vectors["uint8"][: sizes[0]], "data": vectors["uint8"][sizes[0] :]}
    change(document["header"], parts)
    document["arrays"] = {name: ["uint8", [len(part)]] for name, part in parts.items()}
    forge(Path("forged.pqd"), document, {"uint8": b"".join(parts.values())})


def of_arrays(parts: dict[str, bytes], header: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Let the new file of an update have other arrays."""
    document = json.loads(zlib.decompress(parts["header"]))
    document["arrays"] = arrays
    text = json.dumps(document).encode()
    parts["header"], header["size"] = zlib.compress(text), len(text)


def test_an_update_that_was_not_changed_passes(small: Path) -> None:
    """So that the refusals below are for what was changed."""
    new = changed(small, "new.h5", trained)
    pqnet.diff(small, new, "update.pqd")
    forged(lambda header, parts: None)
    pqnet.patch(small, "forged.pqd", "patched.h5")
    assert Path("patched.h5").read_bytes() == new.read_bytes()


def no_arrays(header: dict[str, Any], parts: dict[str, bytes]) -> None:
    header["arrays"], parts["data"] = {}, b""


def bomb(header: dict[str, Any], parts: dict[str, bytes]) -> None:
    no_arrays(header, parts)
    of_arrays(parts, header, {"params/a/values": ["float32", [1 << 36]]})
    parts["data"] = zlib.compress(bytes(1 << 20))
    header["arrays"] = {"params/a/values": ["whole", len(parts["data"])]}


def longer_piece(header: dict[str, Any], parts: dict[str, bytes]) -> None:
    name = next(iter(header["arrays"]))
    piece = zlib.compress(bytes(1 << 26), 1)
    header["arrays"], parts["data"] = {name: ["difference", len(piece)]}, piece


def no_piece(header: dict[str, Any], parts: dict[str, bytes]) -> None:
    name = next(iter(header["arrays"]))
    header["arrays"], parts["data"] = {name: ["whole", 5]}, b"12345"


def header_bomb(header: dict[str, Any], parts: dict[str, bytes]) -> None:
    parts["header"], header["size"] = zlib.compress(bytes(1 << 20)), 1 << 28


def statistics(header: dict[str, Any], parts: dict[str, bytes]) -> None:
    text = zlib.decompress(parts["header"]).replace(b'"kind":"model"', b'"kind":"layer"')
    parts["header"] = zlib.compress(text)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any], dict[str, bytes]], Any], str]] = {
    "no size": (lambda h, p: h.pop("size"), "header: expected old, new, size and arrays, got others"),
    "more": (lambda h, p: h.update(more=1), "header: expected old, new, size and arrays, got others"),
    "negative size": (lambda h, p: h.update(size=-1), "header: expected old, new, size and arrays, got others"),
    "true": (lambda h, p: h.update(size=True), "header: expected True bytes|header: expected 1 bytes"),
    "other file": (lambda h, p: h.update(old="0" * 64), "was made for, of SHA-256 0000"),
    "another new file": (lambda h, p: h.update(new="0" * 64), "expected a new file of SHA-256 0000"),
    "no arrays": (no_arrays, "expected a new file of SHA-256"),
    "record": (lambda h, p: h["arrays"].update(x=["other", 0]), "array 'x': expected whole or difference"),
    "negative": (
        lambda h, p: h["arrays"].update(x=["whole", -1]),
        "array 'x': expected whole or difference, and bytes",
    ),
    "too many": (lambda h, p: h["arrays"].update(x=["whole", 1]), "array 'x': expected whole or difference, and bytes"),
    "unknown array": (lambda h, p: h["arrays"].update(x=["whole", 0]), r"expected those of the new file, got \['x'\]"),
    "more data": (lambda h, p: p.update(data=p["data"] + b"1"), r"data: expected \d+ bytes, those of \d+ arrays, got"),
    "bomb": (bomb, r"expected at most \d+ bytes of whole ones in an update of its size, got 274877906944"),
    "long piece": (longer_piece, r"array '.*': expected \d+ deflated bytes, got others"),
    "no piece": (no_piece, "array '.*': Error -3 while decompressing data"),
    "header bomb": (header_bomb, "header: expected at most 16777216 bytes, got 268435456"),
    "other kind": (statistics, "expected the update of a model file, got that of a layer file"),
    "other old array": (
        lambda h, p: (no_arrays(h, p), of_arrays(p, h, {"params/a/values": ["float32", [1 << 36]]})),
        "array 'params/a/values': expected one of float32 and shape .* in the old file, got none",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_updates(small: Path, name: str) -> None:
    pqnet.diff(small, changed(small, "new.h5", trained), "update.pqd")
    change, match = HOSTILE[name]
    forged(change)
    with pytest.raises(PQNetError, match=match) as reason:
        pqnet.patch(small, "forged.pqd", "patched.h5")
    assert "forged.pqd" in str(reason.value) and not Path("patched.h5").exists()


def test_a_new_file_that_would_not_load_is_not_written(small: Path) -> None:
    """Both digests of the update are right, but what it makes is no network."""
    pqnet.diff(small, changed(small, "new.h5", trained), "update.pqd")

    def no_nodes(header: dict[str, Any], parts: dict[str, bytes]) -> None:
        document = json.loads(zlib.decompress(parts["header"]))
        document["header"]["nodes"] = document["header"]["nodes"][1:]
        text = json.dumps(document).encode()
        parts["header"], header["size"] = zlib.compress(text), len(text)

    forged(no_nodes)
    with pytest.raises(FormatError, match="expected a new file of SHA-256") as reason:
        pqnet.patch(small, "forged.pqd", "patched.h5")
    digest = re.search(r"got (\w{64})", str(reason.value))
    assert digest
    forged(lambda header, parts: (no_nodes(header, parts), header.update(new=digest[1])))
    with pytest.raises(FormatError, match="forged.pqd: the new file: "):
        pqnet.patch(small, "forged.pqd", "patched.h5")
    assert not Path("patched.h5").exists()


@pytest.mark.parametrize("name", ["bomb", "long piece", "header bomb", "other old array"])
def test_bombs_take_no_memory(small: Path, name: str) -> None:
    pqnet.diff(small, changed(small, "new.h5", trained), "update.pqd")
    forged(HOSTILE[name][0])
    tracemalloc.start()
    try:
        with pytest.raises(PQNetError):
            pqnet.patch(small, "forged.pqd", "patched.h5")
        assert tracemalloc.get_traced_memory()[1] < 1 << 24  # they ask for 64 MiB to 256 GiB
    finally:
        tracemalloc.stop()
