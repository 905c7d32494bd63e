"""Good files that mutants are made of, each made once in a process."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from forge import document_of
from random_graphs import random_graph

import pqnet
from pqnet import PQ, Model, PQNetError, diff
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet_converters import to_onnx

__all__ = [
    *("BASES", "DATA", "RECIPE", "document", "hdf5", "model", "onnx", "quantize", "quantized", "small", "state"),
    *("statistics", "train", "update"),
]

BASES = 60  # random networks
DATA = np.random.default_rng(9).standard_normal((20, 2, 5, 5)).astype(np.float32)
RECIPE = {"default": PQ(4, 2), "fc": PQ(3, 2)}


def saved(graph: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Model(graph).save(Path(folder) / "model.h5")
        return (Path(folder) / "model.h5").read_bytes()


@functools.cache
def model(seed: int) -> bytes:
    """Return the file of a random network."""
    return saved(random_graph(seed)[0])


@functools.cache
def onnx(seed: int) -> bytes | None:
    """Return a random network as an ONNX file, None where there is no such operation."""
    try:
        return bytes(to_onnx(Model(random_graph(seed)[0])).SerializeToString())
    except PQNetError:
        return None


@functools.lru_cache(500)
def document(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return JSON document and vectors of a file of pqnet; they are not to be changed."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").write_bytes(data)
        return document_of(Path(folder) / "file")


@functools.cache
def update(seed: int, other: int | None) -> tuple[bytes, bytes]:
    """Return the file of a network, and an update: to other numbers, or to another network."""
    graph = random_graph(seed)[0]
    floats = {n: p for n, p in graph.params.items() if isinstance(p, np.ndarray) and p.dtype == np.float32}
    params = graph.params | {n: np.asarray(p + np.float32(1)) for n, p in floats.items()}
    with tempfile.TemporaryDirectory() as folder:
        old, new, out = (Path(folder) / name for name in ("old", "new", "out"))
        old.write_bytes(model(seed))
        new.write_bytes(model(other) if other is not None else saved(replace(graph, params=params)))
        diff(old, new, out)
        return old.read_bytes(), out.read_bytes()


@functools.cache
def hdf5(seed: int) -> bytes:
    """Return an HDF5 file of a few arrays in one of the layouts of libhdf5."""
    rng, libver = np.random.default_rng(seed), ["earliest", "latest"][seed % 2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        with h5py.File(path, "w", libver=libver, userblock_size=512 * (rng.random() < 0.1)) as file:
            for name in ("a", "g/b", "g/h/c")[: rng.integers(1, 4)]:
                array = rng.integers(0, 9, [(4, 3), (3,), (), (0, 2)][rng.integers(4)])
                array = array.astype(str(rng.choice(["<f4", ">f8", "<i8", "u1", "<f2", "?"])))
                ways: list[dict[str, Any]] = [
                    *({}, {"chunks": True}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}),
                    *({"fletcher32": True}, {"maxshape": (None,) * array.ndim}),
                ]
                made = file.create_dataset(name, data=array, **(ways[rng.integers(6)] if array.ndim else {}))
                if rng.random() < 0.3:
                    made.attrs["unit"] = "metre"
            if rng.random() < 0.2:
                file["soft"] = h5py.SoftLink("/a")
            if rng.random() < 0.2:
                file["other"] = h5py.ExternalLink("other.h5", "/a")
            if rng.random() < 0.2:
                file["text"] = ["x", "y"]
        return path.read_bytes()


# -- of a network of two layers ------------------------------------------------------------------------------


@functools.cache
def small() -> Model:
    """Return a network of a grouped convolution and a linear layer: what goes on with it takes milliseconds."""
    rng = np.random.default_rng(0)
    b = GraphBuilder({"input": ValueInfo(("batch", 2, 5, 5))}, {"batch": 2})

    def layer(op: str, x: str, name: str, *shape: int, **attrs: Any) -> str:
        params = {"weight": rng.standard_normal(shape).astype(np.float32), "bias": np.ones(shape[0], np.float32)}
        return b.add(op, x, name=name, params=params, **attrs)

    x = b.add("relu", layer("conv2d", "input", "conv", 8, 1, 3, 3, groups=2))
    return Model(b.build({"output": layer("linear", b.add("mean", x, axes=(2, 3)), "fc", 4, 8)}))


@functools.cache
def statistics() -> bytes:
    """Return the file of statistics; of no network in particular, as those of another are refused."""
    with tempfile.TemporaryDirectory() as folder:
        found = pqnet.calibrate(small(), DATA, activations="int8", progress=False)
        pqnet.Statistics(found.layers, inputs=found.inputs).save(Path(folder) / "statistics.h5")
        return (Path(folder) / "statistics.h5").read_bytes()


def quantize(folder: Path) -> Model:
    """Quantize the network, with its layers' files in a folder."""
    options: dict[str, Any] = {"metric": "none", "checkpoint": folder, "progress": False}
    return pqnet.quantize(small(), RECIPE, None, **options)


@functools.cache
def quantized() -> tuple[bytes, dict[str, bytes]]:
    """Return the quantized network's file, and the files of its layers by name."""
    with tempfile.TemporaryDirectory() as folder:
        found = quantize(Path(folder))
        return saved(found.graph), {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@functools.cache
def _student() -> Model:
    return pqnet.quantize(small(), RECIPE, None, metric="none", progress=False)


def train(method: str, path: Path) -> Model:
    """Train the network by ``"distill"`` or a method of `pqnet.train.train`, from a state if there is one."""
    from pqnet.train import distill, train

    options: dict[str, Any] = {"steps": 2, "every": 1, "batch_size": 4, "checkpoint": path, "progress": False}
    if method == "distill":
        return distill(_student(), small(), DATA, threads=1, **options)
    return train(small(), RECIPE, DATA, method=method, threads=1, rounds=2, **options)


@functools.cache
def state(method: str) -> bytes:
    """Return the state of a training that goes on, its digest included."""
    with tempfile.TemporaryDirectory() as folder:
        train(method, Path(folder) / "state")
        return (Path(folder) / "state").read_bytes()
