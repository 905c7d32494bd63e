"""Quantization that can be interrupted: what was found for every layer, in a folder, under a name that fits no other.

A file holds what quantizing one layer changed: parameters of the graph and the layer's report. Its name is a SHA-256 of
all that this is a function of: pqnet's own source, the kind of CPU, the options, the codec, and either the layer's
weight and moments, or, where layers see what those before them give, the whole float network, the calibration data and
the codecs of all layers so far. So a file is found exactly when the same bytes would be computed again, whatever has
changed, and none ever has to be deleted for a result to be right.
"""

import functools
import hashlib
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pqnet import kernels
from pqnet.errors import FormatError
from pqnet.graph import Node
from pqnet.graph.graph import Param
from pqnet.io import add_content, graph_content, params_content, params_from, read_container, write_container
from pqnet.pipeline.batches import Batch
from pqnet.pipeline.run import Run
from pqnet.pipeline.statistics import Statistics

__all__ = ["LayerFiles", "resumable"]


def resumable(
    visit: Callable[..., None],
    folder: Path | None,
    run: Run,
    source: Sequence[Batch] | Statistics | None,
    more: str | None = None,
    write: bool = True,
    blocks: Collection[str] = (),
) -> Callable[..., None]:
    """Return ``visit(node, ...)`` such that for a layer with an entry in the folder it does only what it once did.

    Parameters
    ----------
    visit : callable
        Quantizes a node if it is a layer with a codec; what it changes of ``run.graph.params`` it replaces.
    folder : Path or None
        None: keep nothing.
    run : Run
        Before its first layer, or block.
    source : list of Batch, Statistics or None
        What layers are measured with: data, each after those before it; statistics or nothing, each on its own.
    more : str, optional
        What else the result depends on.
    write : bool
        Whether to add entries; of several processes one does.
    blocks : collection of str
        Names of nodes where blocks begin, in place of layers, for a visit that repairs these.
    """
    if folder is None:
        return visit
    entries = LayerFiles(folder, run, source, more, bool(blocks))
    kept = blocks or run.codecs

    def once(node: Node, *inputs: Any) -> None:
        if node.name not in kept:
            visit(node, *inputs)
            return
        key = entries.key(node)
        if not entries.replay(node, key):
            before = dict(run.graph.params)
            visit(node, *inputs)
            if write:
                entries.store(node, key, before)

    return once


@functools.cache
def _source_digest() -> "hashlib._Hash":
    """Return the SHA-256 of pqnet's own source."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest


class LayerFiles:
    """The files of one run."""

    def __init__(
        self,
        folder: Path,
        run: Run,
        source: Sequence[Batch] | Statistics | None,
        more: str | None = None,
        of_blocks: bool = False,
    ) -> None:
        self.folder, self.run = folder, run
        self.reports, self.done = (run.blocks, run.block_done) if of_blocks else (run.report, run.done)
        self.statistics = source if isinstance(source, Statistics) else None
        self.chained = isinstance(source, Sequence)
        self.digest = _source_digest().copy()
        host = [np.__version__, kernels.cpu.NAME, kernels.cpu.ISA]
        options = replace(run.options, repair=None)  # layers are the same with it
        add_content(self.digest, [host, vars(options), more], {})
        if isinstance(source, Sequence):
            add_content(self.digest, *graph_content(replace(run.graph, meta={}).validate()))
            for batch in source:
                add_content(self.digest, "batch", batch)

    def key(self, node: Node) -> str:
        """Return what the file of a layer that is still float is called."""
        digest = self.digest.copy()
        header: list[Any] = [node.op, node.name]
        header += [
            codecs[node.name].to_attrs() for codecs in (self.run.codecs, self.run.instead) if node.name in codecs
        ]
        if self.chained:
            add_content(digest, header, {})
            self.digest = digest  # what later layers see depends on this one
        else:
            arrays = {"weight": self.run.weight(node)}
            if self.statistics is not None:
                moments = self.statistics.layers[node.name]
                arrays |= {"mean": moments.mean, "count": np.array(moments.count)}
                known = {"first": moments.first, "covariance": moments.covariance}
                arrays |= {name: array for name, array in known.items() if array is not None}
            add_content(digest, header, arrays)
        return digest.hexdigest()

    def replay(self, node: Node, key: str) -> bool:
        """Do what quantizing a layer once did; return whether there was a sound file that says it."""
        path = self.folder / f"{key}.h5"
        if not path.exists():
            return False
        try:
            header, arrays = read_container(path, "layer")
            if set(header) != {"key", "report", "params"} or header["key"] != key:
                raise FormatError(f"{path}: expected the entry of layer {node.name!r}, got another one")
            changed, before = params_from(header["params"], arrays), self.run.graph.params
            alike = all(name in before and param.shape == before[name].shape for name, param in changed.items())
            if not alike or not isinstance(header["report"], dict):
                raise FormatError(f"{path}: expected parameters and a report of layer {node.name!r}, got others")
        except FormatError as reason:
            warnings.warn(f"checkpoint: {reason}; layer {node.name!r} is quantized again", stacklevel=2)
            return False
        self.run.graph.params |= changed
        self.done(node, header["report"])
        return True

    def store(self, node: Node, key: str, before: Mapping[str, Param]) -> None:
        """Keep what quantizing a layer changed."""
        changed = {name: param for name, param in self.run.graph.params.items() if param is not before[name]}
        records, arrays = params_content(changed)
        header = {"key": key, "report": self.reports[node.name], "params": records}
        write_container(self.folder / f"{key}.h5", "layer", header, arrays)
