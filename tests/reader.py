"""A reader of pqnet files that shares no code with pqnet, written from `docs/format.md`: h5py and NumPy alone."""

import hashlib
import json
import math
import struct

import h5py
import numpy as np

FIELDS = struct.Struct("<6sHQII32s")  # magic, version, length, deflated and plain bytes of the header, SHA-256


def read(path):
    """Return the JSON document of a file and its arrays by name, after a check of its digest."""
    with open(path, "rb") as file:
        data = file.read()
    magic, version, length, _, text_size, digest = FIELDS.unpack_from(data)
    assert magic == b"PQNET\n" and version in (1, 2) and length == len(data), "not a pqnet file, or not a whole one"
    at = FIELDS.size - len(digest)
    assert hashlib.sha256(data[:at] + bytes(32) + data[FIELDS.size :]).digest() == digest, "the file is damaged"
    with h5py.File(path) as file:
        text = file["header"][0]
        vectors = {name: file[name][:] for name in file if name != "header"}
    assert len(text) == text_size
    document, used = json.loads(text), dict.fromkeys(vectors, 0)
    arrays = {}
    for name, (dtype, shape) in document["arrays"].items():
        start, size = used.get(dtype, 0), math.prod(shape)
        arrays[name] = vectors[dtype][start : start + size].reshape(shape) if size else np.zeros(shape, dtype)
        used[dtype] = start + size
    return document, arrays


def weights(path):
    """Return every parameter of a model file: packed ones as float32 in filter form, others as they are stored."""
    document, arrays = read(path)
    assert document["kind"] == "model"
    found = {}
    for name, record in document["header"]["params"].items():
        prefix = f"params/{name}/"
        own = {key[len(prefix) :]: array for key, array in arrays.items() if key.startswith(prefix)}
        own = {key: array for key, array in own.items() if "/" not in key}  # a name may begin with another's
        found[name] = own["values"] if record is None else decode(record["codec"], record["shape"], own)
    return found


def decode(codec, shape, arrays):
    """Return a packed weight as float32."""
    if codec["codec"] != "additive":
        return part(codec, shape, arrays)
    total, last = None, []
    for i, inner in enumerate(codec["parts"]):
        own = {key.split(".", 1)[1]: array for key, array in arrays.items() if key.split(".", 1)[0] == str(i)}
        weight = part(inner, shape, own)
        if inner["codec"] == "sparse":
            last.append(weight)
        else:
            total = weight if total is None else total + weight
    for weight in last:
        total = weight if total is None else total + weight
    return total


def part(codec, shape, arrays):
    """Return what one codec that is no sum stores."""
    name, n = codec["codec"], math.prod(shape)
    if name == "sparse":
        weight = np.zeros(n, np.float32)
        weight[places(arrays["gaps"], codec["count"])] = floats(arrays, "values")
        return weight.reshape(shape)
    if name == "pq":
        book = floats(arrays, "codebook")
        if codec["codebook_dtype"] == "int8":
            book = arrays["codebook"].view(np.int8).astype(np.float32) * arrays["scale"]
        blocks = book[unpack(arrays["codes"], n // codec["d"], codec["k"])]
        if codec["layout"] == "spatial":
            return blocks.reshape(shape)
        outputs, channels, *kernel = shape
        return np.moveaxis(blocks.reshape(outputs, *kernel, channels), -1, 1)
    values = floats(arrays, "codebook")[:, 0] if name == "scalar" else levels(codec)
    weight = values[unpack(arrays["codes"], n, len(values))]
    if "scales" in arrays:  # of shape (1 or outputs, groups of inputs)
        weight = weight.reshape(*arrays["scales"].shape, -1)
        if "zeros" in arrays:
            weight = weight - arrays["zeros"][:, :, None].astype(np.float32)
        weight = weight * floats(arrays, "scales")[:, :, None]
    return weight.reshape(shape)


def levels(codec):
    """Return the values that a codec with a fixed list has."""
    if codec["codec"] == "intn":
        n = 2 ** codec["bits"]
        return np.arange(n, dtype=np.float32) - (n // 2 if codec["symmetric"] else 0)
    if codec["values"] == "pow2":
        powers = 2.0 ** np.arange(-codec["exponent"], 1)
        return np.float32([*-powers[::-1], 0, *powers])
    return np.float32({"binary": [-1, 1], "ternary": [-1, 0, 1]}.get(str(codec["values"]), codec["values"]))


def floats(arrays, name):
    """Return float numbers as float32, times a power of two if there is an exponent."""
    exponent = int(arrays["exponent"][0]) if "exponent" in arrays and arrays[name].dtype == np.float16 else 0
    return np.ldexp(arrays[name].astype(np.float32), exponent)


def unpack(stream, n, k):
    """Return n codes below k of a stream of bits, the least significant bit first."""
    bits = (k - 1).bit_length()
    codes = np.unpackbits(stream, count=n * bits, bitorder="little").reshape(n, bits)
    return codes @ (1 << np.arange(bits))


def places(stream, count):
    """Return the places of a sparse weight's entries."""
    bits = int(stream[0])
    escape = 2**bits - 1
    codes = unpack(stream[1:], (len(stream) - 1) * 8 // bits, escape + 1)
    is_entry = codes != escape
    return (np.cumsum(codes + is_entry) - 1)[is_entry][:count]
