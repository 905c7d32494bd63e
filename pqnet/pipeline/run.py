"""The state of one quantization."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pqnet._progress import Progress
from pqnet.codecs import PQ, Codec, Packed
from pqnet.errors import of_layer
from pqnet.graph import Graph, Node
from pqnet.graph.passes import fold_norm_statistics
from pqnet.graph.ranges import OUTPUT_SHIFTS
from pqnet.pipeline.moments import relative, row_weights, token_error
from pqnet.runtime import Model

__all__ = ["Options", "Run", "finished_graph", "layer_costs", "layer_report"]


@dataclass(frozen=True)
class Options:
    """How `quantize` searches; checked by `choose_options`, recorded in the model."""

    mode: str | None
    metric: str
    target: str
    correct_bias: bool
    permute: bool
    reestimate_norm: bool
    seed: int
    effort: str = "normal"
    balanced: bool = False
    repair: str | None = None


@dataclass
class Run:
    """The growing student graph and the report of the layers done."""

    graph: Graph
    codecs: dict[str, Codec]
    options: Options
    threads: int
    bar: Progress | None  # None of what a worker does
    search: Mapping[str, Any]  # arguments of the fit, of the mode
    instead: Mapping[str, Codec] = field(default_factory=dict)  # codecs to take where they leave less error
    report: dict[str, dict[str, Any]] = field(default_factory=dict)
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)  # of a repair, by the first node

    def weight(self, node: Node) -> np.ndarray:
        """Return the weight of a layer that is still float."""
        return np.asarray(self.graph.params[node.params["weight"]], np.float32)

    def pack(
        self,
        node: Node,
        target: np.ndarray,
        metric: np.ndarray | None = None,
        row_weights: np.ndarray | None = None,
    ) -> Packed:
        """Fit the codec of a layer to a target, by default its weight, and put the codes into the graph.

        Where there is another codec to try, that of the less error is taken.
        """
        codec, weight = self.codecs[node.name], self.weight(node)
        digest = hashlib.sha256(f"{self.options.seed}/{node.name}".encode()).digest()
        options = {**self.search, **({"effort": self.options.effort} if isinstance(codec, PQ) else {})}
        with of_layer(node.name):
            fit = codec.search(
                target,
                metric,
                row_weights=row_weights,
                seed=int.from_bytes(digest[:6], "big"),
                threads=self.threads,
                **options,
            )
            if node.name in self.instead:
                other = self.instead[node.name].search(target, metric, row_weights=row_weights, threads=self.threads)
                fit = min(fit, other, key=lambda found: found.error)
        self.graph.params[node.params["weight"]] = fit.packed
        error, energy = (float(np.square(w, dtype=np.float64).sum()) for w in (weight - fit.packed.decode(), weight))
        self.done(node, layer_report(fit.packed, relative(error, energy), fit.n_iter))
        return fit.packed

    def pack_tokens(self, node: Node, counts: np.ndarray) -> None:
        """Pack an embedding whose tokens occur as often as ``counts`` says."""
        weight = self.weight(node)
        packed = self.pack(node, weight, row_weights=row_weights(self.options.metric, counts))
        self.report[node.name]["output_error"] = token_error(counts, weight, packed.decode())

    def begin(self, node: Node) -> None:
        """Take note of the layer or block that is searched now, of what belongs to it until `done`."""
        if self.bar is not None:
            self.bar.begin(node.name)

    def expect(self, costs: Mapping[str, float]) -> None:
        """Take note of more to begin."""
        if self.bar is not None:
            self.bar.extend(costs)

    def done(self, node: Node, report: dict[str, Any]) -> None:
        """Take note of a layer that has its codes; not begun, by an earlier call."""
        self.report[node.name] = report
        self._count(node)

    def block_done(self, node: Node, report: dict[str, Any]) -> None:
        """Take note of a block that was looked at."""
        self.blocks[node.name] = report
        self._count(node)

    def _count(self, node: Node) -> None:
        if self.bar is not None and self.bar.name == node.name:
            self.bar.update()
        elif self.bar is not None:
            self.bar.skip(name=node.name)

    def finish(self) -> Model:
        """Return the model of the finished graph."""
        return Model(finished_graph(self.graph, self.options, self.report, list(self.blocks.values())))


def finished_graph(
    graph: Graph,
    options: Options,
    report: Mapping[str, Mapping[str, Any]],
    blocks: Sequence[Mapping[str, Any]] = (),
) -> Graph:
    """Return a graph with folded batch norms and the report of its layers; errors have four digits, for small files."""
    graph = fold_norm_statistics(graph)
    found: dict[str, Any] = {"layers": {name: _rounded(entry) for name, entry in report.items()}}
    if blocks:
        found["blocks"] = [_rounded(entry) for entry in blocks]
    meta = {key: value for key, value in graph.meta.items() if key != OUTPUT_SHIFTS}  # those of the weights before
    return replace(graph, meta={**meta, "quantization": {**vars(options), **found}})


def _rounded(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in entry.items()}


def layer_costs(graph: Graph, names: Iterable[str]) -> dict[str, float]:
    """Return about how long layers take, relative to each other: products of weights with words and moments."""
    layers = graph.layers()
    shapes = {name: graph.params[layers[name].params["weight"]].shape for name in names}
    return {name: 1e6 + math.prod(shape) * (300.0 + math.prod(shape[1:])) for name, shape in shapes.items()}


def layer_report(packed: Packed, weight_error: float, iterations: int) -> dict[str, Any]:
    """Return what is recorded of a packed layer, but for its output error."""
    return {
        "bytes": packed.nbytes,
        "dense_bytes": 4 * math.prod(packed.shape),
        "weight_error": weight_error,
        "iterations": iterations,
        "codec": packed.codec.to_attrs(),
    }
