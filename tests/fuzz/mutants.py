"""The classes of files that are fuzzed: how a mutant of each is made, and what pqnet has to make of it.

A mutant is a function of a generator of random numbers. What reads it returns a word for what came of it, or raises.
Good files are made once for a process (`bases.py`): making them takes ten times as long as changing one.
"""

import io
import json
import re
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bases
import hdf5
import numpy as np
from forge import document_of, forge, reseal
from test_forged_graphs import attempt, forged

import pqnet
from pqnet import Model, PQNetError, Recipe, patch
from pqnet.io import append_digest, read_numpy, without_digest
from pqnet_converters import from_onnx

__all__ = ["CHANGES", "CLASSES"]

RECIPES = [
    "default: {codec: pq, k: 256, d: 8}\nfc: null\n",
    "'*.conv?': {codec: scalar, k: 4, per: channel}\ndefault: &a {codec: intn, bits: 4}\nhead: *a\n",
    "default: {codec: additive, parts: [{codec: pq, k: 16, d: 4}, {codec: sparse, count: 3}]}\n",
    "# comment\n'a': {codec: fixed, values: pow2, scale: free}\n\"b\": ~\n",
]
PIECES = [
    *(
        "&a ",
        "*a",
        "!!int ",
        "!!float ",
        "!!timestamp ",
        "!!binary ",
        "!!set ",
        "<<: ",
        "? ",
        ": ",
        "- ",
        "{",
        "}",
        "[",
    ),
    *("]", ",", "\n", "  ", "|", ">", "%YAML 9", "---\n", "null", "9" * 30, "0x_", "1e999", ".inf", "2001-13-45", "\0"),
    *("codec: pq", "k: 0", "d: -1", "parts: [", "'", '"', "\ufeff", "\ud7ff", "k", "=", "!!python/name:os.system "),
]
HEADERS = [
    *("'descr'", "'<f4'", "'O'", "'>i8'", "'<U9'", "[('a', '<f4')]", "'fortran_order'", "True", "'shape'", "(2, 3)"),
    *(
        "(",
        ")",
        ",",
        "-1",
        "0",
        "99999999999999999999",
        "1 << 60",
        "None",
        "{",
        "}",
        "'",
        "\\",
        "\n",
        "  ",
        "b''",
        "1e9",
    ),
]


# -- mutants -------------------------------------------------------------------------------------------------


def changed_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Return data with some bytes flipped, set, deleted, doubled, or cut off."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(out) + 1))
        size = int(2 ** rng.integers(7))
        match rng.integers(6):
            case 0 | 1 if at < len(out):
                out[at] ^= 1 << int(rng.integers(8))
            case 2:
                out[at : at + 8] = int(rng.choice([0, 1, 255, 1 << 16, 1 << 31, 1 << 62])).to_bytes(8, "little")
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = out[at : at + size]
            case 5 if rng.random() < 0.3:
                del out[at:]
    return bytes(out)


def changed_text(rng: np.random.Generator, text: str, pieces: list[str]) -> str:
    """Return text with pieces put in, taken out, or repeated."""
    for _ in range(int(rng.integers(1, 6))):
        at, end = sorted(rng.integers(len(text) + 1, size=2).tolist())
        end = min(end, at + 12)
        text = text[:at] + str(rng.choice([pieces[rng.integers(len(pieces))], "", text[at:end] * 2])) + text[end:]
    return text


def model_file(rng: np.random.Generator, path: Path) -> None:
    """A model file with a right checksum and changed header, arrays or bytes."""
    path.write_bytes(bases.model(int(rng.integers(bases.BASES))))
    forge_container(rng, path)


def forge_container(rng: np.random.Generator, path: Path) -> None:
    """Change bytes of a pqnet file, or its header and arrays; most have the right checksum."""
    if rng.random() < 0.2:
        path.write_bytes(changed_bytes(rng, path.read_bytes()))
        if rng.random() < 0.7 and path.stat().st_size > 600:
            reseal(path)
        return
    document, vectors = map(dict, bases.document(path.read_bytes()))
    if rng.random() < 0.8 and document["header"]:
        document["header"] = forged(rng, document["header"])
    if rng.random() < 0.2:
        document = forged(rng, document)
    if vectors and rng.random() < 0.3:
        name = list(vectors)[rng.integers(len(vectors))]
        vectors[name] = changed_bytes(rng, vectors[name])
        vectors[name] = vectors[name][: len(vectors[name]) // 8 * 8]
    forge(path, document, vectors)


def update_file(rng: np.random.Generator, path: Path) -> None:
    """An update with changed records, header or data, and beside it the old file that it is for."""
    seed = int(rng.integers(bases.BASES))
    other = None if rng.random() < 0.7 else int(seed + rng.integers(1, 4)) % bases.BASES
    old, data = bases.update(seed, other)
    path.with_name("old.h5").write_bytes(old)
    document, vectors = map(dict, bases.document(data))
    document["header"] = dict(document["header"])
    size = document["arrays"]["header"][1][0]
    parts = {"header": vectors["uint8"][:size], "data": vectors["uint8"][size:]}
    if rng.random() < 0.5:
        document["header"] = forged(rng, document["header"])
    if rng.random() < 0.5:
        inner = json.dumps(forged(rng, json.loads(zlib.decompress(parts["header"])))).encode()
        parts["header"], document["header"]["size"] = zlib.compress(inner), len(inner)
    if rng.random() < 0.3:
        name = str(rng.choice(["header", "data"]))
        parts[name] = changed_bytes(rng, parts[name])
    if rng.random() < 0.9:
        document["arrays"] = {name: ["uint8", [len(part)]] for name, part in parts.items()}
    forge(path, document, {"uint8": b"".join(parts.values())} if any(parts.values()) else {})


def recipe_file(rng: np.random.Generator, path: Path) -> None:
    path.write_text(changed_text(rng, RECIPES[rng.integers(len(RECIPES))], PIECES), "utf-8", newline="")


def numpy_file(rng: np.random.Generator, path: Path) -> None:
    """A .npy or .npz file with a changed header, directory, or bytes."""
    dtype = ["<f4", ">f8", "<i8", "|u1", "<f2", "?"][rng.integers(6)]
    array = np.asarray(rng.integers(0, 9, [2, 3][: rng.integers(3)]), dtype)
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(array))
    data = stream.getvalue()
    if rng.random() < 0.6:
        header = changed_text(rng, data[10 : data.index(b"\n")].decode(), HEADERS).encode("latin1")
        data = data[:8] + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + data[data.index(b"\n") + 1 :]
    if rng.random() < 0.5:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", int(rng.choice([0, 8, 12, 14]))) as archive:
            archive.writestr("x.npy", data)
            archive.writestr("y.npy", data[:: rng.choice([1, 1, -1])])
        data = stream.getvalue()
    path.write_bytes(changed_bytes(rng, data) if rng.random() < 0.7 else data)


def npz_file(rng: np.random.Generator, path: Path) -> None:
    """A .npz file with a changed directory: names, sizes, offsets, kinds of compression, members in members."""
    members = [(str(rng.choice(["x.npy", "y.npy", "x", "../z.npy", "a/b.npy", "\ufb01.npy"])), i) for i in range(3)]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that appear twice
        for name, i in members[: rng.integers(4)]:
            array = np.asarray(rng.integers(0, 9, [200, 3][: rng.integers(3)]), ["<f4", "<i8", "|b1"][i])
            inner = io.BytesIO()
            np.save(inner, array)
            data = inner.getvalue() if rng.random() < 0.8 else stream.getvalue()
            archive.writestr(name, data, int(rng.choice([0, 8, 8, 12, 14])))
    data = stream.getvalue()
    directory = data.rfind(b"PK\x01\x02")
    if directory >= 0 and rng.random() < 0.7:
        start = data.find(b"PK\x01\x02")
        data = data[:start] + changed_bytes(rng, data[start:])
    path.write_bytes(changed_bytes(rng, data) if rng.random() < 0.3 else data)


def hdf5_file(rng: np.random.Generator, path: Path) -> None:
    """An HDF5 file, written by libhdf5 in one of its layouts, with changed bytes."""
    path.write_bytes(changed_bytes(rng, bases.hdf5(int(rng.integers(bases.BASES)))))


def statistics_file(rng: np.random.Generator, path: Path) -> None:
    path.write_bytes(bases.statistics())
    forge_container(rng, path)


def checkpoint_file(rng: np.random.Generator, path: Path) -> None:
    """The file of one layer of a quantization that goes on; beside it, its name in the folder."""
    entries = bases.quantized()[1]
    name = sorted(entries)[rng.integers(len(entries))]
    path.write_bytes(entries[name])
    path.with_suffix(".name").write_text(name)
    forge_container(rng, path)


def training_file(rng: np.random.Generator, path: Path) -> None:
    """The state of a training that goes on, with its checksum right and its content changed; beside it, its method."""
    import torch

    method = ["distill", "lc", "noise", "ipq"][rng.integers(4)]
    path.with_suffix(".name").write_text(method)
    path.write_bytes(bases.state(method))
    plain = without_digest(path)
    if rng.random() < 0.3:
        path.write_bytes(changed_bytes(rng, plain))
    else:
        content = torch.load(io.BytesIO(plain), weights_only=True)
        for _ in range(int(rng.integers(1, 4))):
            change_state(rng, content)
        torch.save(content, path)
    if rng.random() < 0.9:
        append_digest(path)


def change_state(rng: np.random.Generator, content: Any) -> None:
    """Change one entry at random of what PyTorch kept, or of a dict or list in it."""
    import torch

    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    if not keys:
        return
    key = keys[rng.integers(len(keys))]
    value = content[key]
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        change_state(rng, value)
        return
    tensor = value if isinstance(value, torch.Tensor) else torch.zeros(2)
    numbers = [0, -1, 1, 2, 3, 1 << 40, -(1 << 62), float("nan"), float("inf"), 1e300, "x", None, [], {}, True]
    tensors = [tensor.reshape(-1)[:1], tensor.double(), tensor * float("nan"), tensor.to(torch.int64), -tensor]
    match rng.integers(4):
        case 0 if isinstance(content, dict):
            del content[key]
        case 1:
            content[key] = numbers[rng.integers(len(numbers))]
        case 2:
            content[key] = [*tensors, tensor[None], tensor.to(torch.complex64)][rng.integers(7)]
        case 3:
            content[key] = content[keys[rng.integers(len(keys))]]


def onnx_file(rng: np.random.Generator, path: Path) -> None:
    """An ONNX file with fields of its messages changed, or bytes."""
    from onnx import ModelProto

    while (data := bases.onnx(int(rng.integers(bases.BASES)))) is None:
        pass
    if rng.random() < 0.2:
        path.write_bytes(changed_bytes(rng, data))
        return
    model = ModelProto.FromString(data)
    for _ in range(int(rng.integers(1, 4))):
        change_message(rng, model)
    path.write_bytes(model.SerializeToString())


def change_message(rng: np.random.Generator, message: Any) -> None:
    """Change one field at random, of this message or of one in it."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = fields[rng.integers(len(fields))]
    repeated = not isinstance(value, str | bytes | int | float | bool) and hasattr(value, "__len__")
    at = int(rng.integers(len(value))) if repeated and len(value) else 0
    inner = (value[at] if len(value) else None) if repeated else value
    if hasattr(inner, "ListFields") and rng.random() < 0.9:
        change_message(rng, inner)
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    elif repeated and len(value) and rng.random() < 0.3:
        (value.append if not hasattr(inner, "ListFields") else value.add().CopyFrom)(inner)
    elif not hasattr(inner, "ListFields") and inner is not None:
        new = changed_value(rng, inner)
        try:
            if repeated:
                value[at] = new
            else:
                setattr(message, field.name, new)
        except (ValueError, TypeError):  # of 32 bits
            return


def changed_value(rng: np.random.Generator, value: Any) -> Any:
    if isinstance(value, bytes):
        return changed_bytes(rng, value)
    if isinstance(value, str):
        return str(rng.choice(["", "x", value[::-1], value + "_0", "Reshape", "Conv", "Concat", "Slice", "Expand"]))
    if isinstance(value, float):
        return float(rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), -value]))
    return int(rng.choice([0, 1, 2, 3, -1, value + 1, value - 1, 1 << 31, 1 << 40, -(1 << 62), (1 << 63) - 1]))


# -- what pqnet makes of them --------------------------------------------------------------------------------


def load_model(rng: np.random.Generator, path: Path) -> str:
    return attempt(path, rng)


def load_onnx(rng: np.random.Generator, path: Path) -> str:
    from_onnx(path).save(path.with_suffix(".h5"))
    return attempt(path.with_suffix(".h5"), rng)


def load_recipe(rng: np.random.Generator, path: Path) -> str:
    recipe = Recipe.read(path)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    return "read"


def load_numpy(rng: np.random.Generator, path: Path) -> str:
    got, want = read_numpy(path), np.load(path, allow_pickle=False)
    pairs = [(got, want)] if isinstance(got, np.ndarray) else [(got[name], want[name]) for name in want.files]
    assert all((a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in pairs)
    return "read"


def load_hdf5(rng: np.random.Generator, path: Path) -> str:
    assert hdf5.read_arrays(path)
    return "read"


def load_statistics(rng: np.random.Generator, path: Path) -> str:
    statistics = pqnet.load_statistics(path)
    again = path.with_suffix(".again")
    statistics.save(again)
    assert pqnet.load_statistics(again).layers.keys() == statistics.layers.keys()
    activations = "int8" if statistics.inputs else None
    run_small(pqnet.quantize(bases.small(), bases.RECIPE, statistics, activations=activations, progress=False))
    return "used"


def load_checkpoint(rng: np.random.Generator, path: Path) -> str:
    folder = path.with_suffix(".folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(path, folder / path.with_suffix(".name").read_text())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        small = bases.quantize(folder)
    if any("is quantized again" in str(each.message) for each in said):
        small.save(path.with_suffix(".again"))
        assert path.with_suffix(".again").read_bytes() == bases.quantized()[0]
        return "quantized again"
    run_small(small)
    return "used"


def load_training(rng: np.random.Generator, path: Path) -> str:
    run_small(bases.train(path.with_suffix(".name").read_text(), path))
    return "used"


def run_small(model: Model) -> None:
    """Run what was made of `bases.small`, as it is and after it was saved."""
    x = bases.DATA[:2]
    y = pqnet.runtime.model._from_bytes(*model.__reduce__()[1])(x)
    assert y.shape == (2, 4) and np.array_equal(y, model(x), equal_nan=True)


def load_update(rng: np.random.Generator, path: Path) -> str:
    """Patch; where the new file is another than the update says, say so in the update, as a forger would."""
    new = path.with_name("patched.h5")
    try:
        patch(path.with_name("old.h5"), path, new)
    except PQNetError as reason:
        digest = re.search("expected a new file of SHA-256 .*, got ([0-9a-f]{64})$", str(reason))
        if not digest:
            raise
        document, vectors = document_of(path)
        document["header"]["new"] = digest[1]
        patch(path.with_name("old.h5"), forge(path, document, vectors), new)
    return attempt(new, rng)


Make, Load = Callable[[np.random.Generator, Path], None], Callable[[np.random.Generator, Path], str]
CLASSES: dict[str, tuple[Make, Load, str]] = {
    "model": (model_file, load_model, ".h5"),
    "recipe": (recipe_file, load_recipe, ".yaml"),
    "npy": (numpy_file, load_numpy, ".npz"),
    "hdf5": (hdf5_file, load_hdf5, ".h5"),
    "onnx": (onnx_file, load_onnx, ".onnx"),
    "npz": (npz_file, load_numpy, ".npz"),
    "statistics": (statistics_file, load_statistics, ".h5"),
    "checkpoint": (checkpoint_file, load_checkpoint, ".h5"),
    "training": (training_file, load_training, ".pt"),
    "update": (update_file, load_update, ".pqd"),
}


def change_recipe(rng: np.random.Generator, path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "replace")
    path.write_text(changed_text(rng, text, PIECES), "utf-8", newline="")


def change_onnx(rng: np.random.Generator, path: Path) -> None:
    from onnx import ModelProto

    model = ModelProto.FromString(path.read_bytes())
    change_message(rng, model)
    path.write_bytes(model.SerializeToString())


# How a file of a class that may be a mutant already is changed further; what cannot be read any more raises.
CHANGES: dict[str, Make] = {
    "model": forge_container,
    "statistics": forge_container,
    "recipe": change_recipe,
    "onnx": change_onnx,
}
