"""`Model`: a graph ready to run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pqnet import _check
from pqnet._html import table
from pqnet._threads import default_threads
from pqnet.codecs import Packed
from pqnet.errors import PQNetError, enough_memory
from pqnet.graph import Graph, ValueInfo
from pqnet.graph.indices import detection_counts, index_limits
from pqnet.graph.ranges import check_ranges
from pqnet.graph.size import SizeReport, measure_size
from pqnet.graph.symbols import Signature, output_signature
from pqnet.io import Golden, graph_from_bytes, graph_to_bytes, load_graph, save_graph
from pqnet.runtime.engine import Engine, prepared
from pqnet.runtime.execute import check_inputs
from pqnet.runtime.program import StepTime
from pqnet.runtime.tune import rule

__all__ = ["Model", "Signature", "load"]

GOLDEN_BYTES = 8192
TRIES = 4  # images in which a detector may find something
COMPUTE = ("float32", "bfloat16", "int8", "auto")


class Model:
    """A network that runs on NumPy arrays, its quantized weights kept as codes in memory.

    Parameters
    ----------
    graph : Graph
        Checked and kept as it is; for running, batch norms are folded into the float weights before them.
    golden : Golden, optional
        Recorded inputs and outputs that `pqnet verify` compares with.
    compute : {"float32", "bfloat16", "int8", "auto"}
        The lowest precision of the products of layers; sums, and all else, are float32. ``"bfloat16"`` rounds inputs
        and weights to 8 bits of precision. ``"int8"`` takes 8-bit integers where the network has a range of the layer's
        inputs, see ``activations`` of `pqnet.quantize`, else bfloat16. ``"auto"`` allows both. Each layer has the
        precision that is fastest on this CPU: without instructions for low precision that is float32.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import load_images, model_path
    >>> model = pqnet.load(model_path())
    >>> _, images, _ = load_images()
    >>> model(images[:5]).shape
    (5, 10)
    """

    def __init__(self, graph: Graph, golden: Golden | None = None, compute: str = "float32") -> None:
        _check.choice(compute, "compute", COMPUTE)
        if not isinstance(graph, Graph):
            raise _check.error("graph", "a Graph", _check.describe(graph), "pqnet.load reads a model from a file")
        if not isinstance(golden, Golden | None):
            raise _check.error("golden", "a Golden record or None", _check.describe(golden))
        self.graph = graph.validate()
        check_ranges(self.graph)
        self.golden = golden
        self.compute = compute
        self._engine = Engine(prepared(self.graph), compute=compute)

    @property
    def inputs(self) -> Signature:
        """Name to (shape, dtype) in calling order; None stands for a free axis."""
        return {
            name: (tuple(None if isinstance(d, str) else d for d in info.shape), info.dtype)
            for name, info in self.graph.inputs.items()
        }

    @property
    def outputs(self) -> Signature:
        """Name to (shape, dtype) in return order; None stands for a free axis."""
        return output_signature(self.graph)

    def __call__(self, *arrays: Any, threads: int | None = None, **named: Any) -> Any:
        """Run on the inputs, given in order or by name; returns the output, or a tuple of several."""
        if not named and len(arrays) != len(self.graph.inputs):
            raise PQNetError(f"inputs: expected {len(self.graph.inputs)} ({list(self.inputs)}), got {len(arrays)}")
        given = dict(zip(self.graph.inputs, arrays, strict=False))
        if len(given) < len(arrays) or given.keys() & named.keys():
            raise PQNetError(f"inputs: expected {list(self.inputs)}, each once, got {len(arrays)} and {list(named)}")
        outputs = tuple(self.run({**given, **named}, threads=threads).values())
        return outputs[0] if len(outputs) == 1 else outputs

    def run(self, inputs: Mapping[str, Any], *, threads: int | None = None) -> dict[str, np.ndarray]:
        """Run on named inputs and return the named outputs.

        Parameters
        ----------
        inputs : dict of str to array
            By the names of ``self.inputs``; others are ignored with a warning, so that what a tokenizer gives can be
            passed as it is. Floats and integers become float32 where float32 is wanted; integers and booleans are
            never made from floats, integers have to fit into the dtype of the input, and booleans and integers that
            are 0 or 1 stand for each other (masks).
        threads : int, optional
            Cores to use; default all. The result does not depend on it. Any number of Python threads may call one model
            at once.

        Returns
        -------
        dict of str to ndarray
            New arrays, in the order of ``self.outputs``.

        Raises
        ------
        PQNetError
            A missing name, wrong shape or dtype, NaN, an integer out of range.
        """
        arrays = check_inputs(self.graph, inputs)
        try:
            return self._engine.run(arrays, default_threads(threads))
        except (MemoryError, RuntimeError):  # the way that costs nothing where all is well
            with enough_memory("give fewer samples at a time, or choose fewer threads"):
                raise

    def profile(self, inputs: Mapping[str, Any], *, threads: int | None = None, runs: int = 20) -> list[StepTime]:
        """Measure every step of a run alone.

        Parameters
        ----------
        inputs : dict of str to array
        threads : int, optional
        runs : int

        Returns
        -------
        list of StepTime
            In the order of execution: what the step computes (``label``), by which ``algorithm``, median ``seconds``,
            and the bytes of values and parameters that it reads and writes (``nbytes``; 0 if unknown).
        """
        arrays = check_inputs(self.graph, inputs)
        return self._engine.profile(arrays, default_threads(threads), _check.integer(runs, "runs", 1))

    def size(self) -> SizeReport:
        """Return the bytes of the network as the papers count them."""
        return measure_size(self.graph)

    def save(self, path: str | Path) -> None:
        """Write the model to one HDF5 file; the file appears whole or not at all."""
        save_graph(path, self.graph, self.golden)

    def draw_golden(self, seed: int = 0) -> Golden:
        """Return a golden pair: seeded inputs, and what this model gives for them now.

        Floats are normal; integers that pick rows of a table are drawn among these, so that texts are words; others
        are 1, as masks of texts without padding are, and booleans True. Where a network refuses these integers, they
        are 0. A detector gets an image of simple shapes, the first of a few in which it finds something. On one thread
        and by the algorithms of the cost rule: files do not depend on measurements.
        """
        _check.rng_seed(seed)
        engine = Engine(self._engine.graph, rule, self.compute)
        if counts := detection_counts(self.graph):
            return self._draw_detections(engine, seed, counts)
        infos = self.graph.infer_shapes(self.graph.symbols)
        shapes = {name: ValueInfo(infos[name].shape, infos[name].dtype) for name in self.graph.inputs}
        limits, rng = index_limits(self.graph, infos), np.random.default_rng((seed, 1))
        integers = {
            name: rng.integers(0, limits[name], infos[name].shape) if name in limits else np.ones(infos[name].shape)
            for name in shapes
            if infos[name].dtype not in ("float32", "bool")
        }
        golden = Golden.draw(shapes, seed, {name: a.astype(shapes[name].dtype) for name, a in integers.items()})
        try:
            return golden.with_outputs(engine.run(golden.inputs(), 1))
        except PQNetError:  # the network counts with its indices before it uses them
            golden = Golden.draw(shapes, seed)
            return golden.with_outputs(engine.run(golden.inputs(), 1))

    def _draw_detections(self, engine: Engine, seed: int, counts: list[str]) -> Golden:
        """Return a golden pair of a detector, in which there are detections if a few tries find any."""
        inputs = self.graph.inputs
        batch = {i.shape[0]: 1 for i in inputs.values() if len(i.shape) == 4 and isinstance(i.shape[0], str)}
        infos = self.graph.infer_shapes({**self.graph.symbols, **batch})
        images = [n for n in inputs if len(infos[n].shape) == 4 and infos[n].dtype == "float32"]
        drawn = Golden.draw({n: ValueInfo(infos[n].shape, infos[n].dtype) for n in inputs}, seed)
        found = []
        for i in range(TRIES):
            golden = replace(drawn, seed=seed + i, images=images)
            found.append(golden.with_outputs(engine.run(golden.inputs(), 1)))
            if any(found[-1].outputs[name].any() for name in counts):
                return found[-1]
        return found[0]

    def with_golden(self, golden: Golden) -> "Model":
        """Return the model with a golden pair for its file, which stays small.

        Outputs that would make it more than 8 KiB are left out, the largest first, and the pair if none fits.
        """
        stored, kept = sum(a.nbytes for a in golden.arrays.values()), dict(golden.outputs)
        while kept and stored + sum(a.nbytes for a in kept.values()) > GOLDEN_BYTES:
            del kept[max(kept, key=lambda name: kept[name].nbytes)]
        return Model(self.graph, golden.with_outputs(kept) if kept else None, self.compute)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to other processes, and be copied, in the form of the file."""
        return _from_bytes, (graph_to_bytes(self.graph, self.golden), self.compute)

    def __repr__(self) -> str:
        size = self.size()
        return f"Model({len(self.graph.nodes)} nodes, {size.total} bytes, {size.ratio:.1f}x smaller than float32)"

    def _repr_html_(self) -> str:
        """Return tables for notebooks: what goes in and comes out, and the layers."""
        values = [
            [name, what, dtype, str(tuple("any" if n is None else n for n in shape)).replace("'", "")]
            for what, signature in (("input", self.inputs), ("output", self.outputs))
            for name, (shape, dtype) in signature.items()
        ]
        layers, nodes = [], self.graph.layers()
        for name, part in self.size().per_layer.items():
            param = self.graph.params[nodes[name].params["weight"]]
            codec = str(param.codec) if isinstance(param, Packed) else "float"
            shape = "x".join(map(str, param.shape))
            layers.append([name, shape, codec, part.codes + part.codebooks + part.other, part.dense])
        return table(repr(self), ["value", "is", "type", "shape"], values) + table(
            "Layers", ["layer", "shape", "codec", "bytes", "as float32"], layers
        )


def _from_bytes(data: bytes, compute: str) -> Model:
    return Model(*graph_from_bytes(data), compute)


@enough_memory("run it where more is free: a model takes about the size of its file")
def load(path: str | Path, compute: str = "float32", key: str | Path | None = None) -> Model:
    """Load a model from a pqnet HDF5 file.

    Parameters
    ----------
    path : str or Path
    compute : {"float32", "bfloat16", "int8", "auto"}
        The lowest precision of the products of layers; sums, and all else, are float32. ``"bfloat16"`` rounds inputs
        and weights to 8 bits of precision. ``"int8"`` takes 8-bit integers where the network has a range of the layer's
        inputs, see ``activations`` of `pqnet.quantize`, else bfloat16. ``"auto"`` allows both. Each layer has the
        precision that is fastest on this CPU: without instructions for low precision that is float32.
    key : str or Path, optional
        PEM file of an Ed25519 public key: load only what was signed with its private key, see `pqnet.sign`.

    Returns
    -------
    Model

    Raises
    ------
    FormatError
        The file is damaged, of another version, or no pqnet model; or changed after it was signed.
    PQNetError
        There is no readable file at ``path``, or no signature beside it.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import model_path
    >>> pqnet.load(model_path()).inputs
    {'input': ((None, 1, 8, 8), 'float32')}
    """
    _check.choice(compute, "compute", COMPUTE)  # before a large file is read
    return Model(*load_graph(path, key), compute)
