"""How much of a layer's error reaches the outputs of the network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pqnet._progress import tick
from pqnet._threads import ordered_map
from pqnet.graph import Graph, Node, weight_op
from pqnet.io import FileArray
from pqnet.pipeline.batches import Batch, is_array, iterate_batches, named_inputs, open_samples
from pqnet.pipeline.moments import operand
from pqnet.pipeline.padding import real_positions, without_padding
from pqnet.pipeline.sweep import Values, sweep
from pqnet.runtime.execute import evaluate_node, node_params, run_from, run_graph, values_to_free

__all__ = ["Reach", "network_gains", "single_samples", "some_samples"]


class Reach(NamedTuple):
    """What reaches the outputs of the network of an error of one layer's.

    Attributes
    ----------
    error : float
        Squared, relative to the layer's outputs.
    gain : float
        Squared change of the network's outputs, relative to these, for one of such errors.
    """

    error: float
    gain: float


def some_samples(graph: Graph, data: Any, n: int) -> list[Batch]:
    """Return about n samples of calibration data in batches: evenly from arrays, the first n batches of an iterable."""
    if isinstance(data, str | Path):
        data = open_samples(data, list(graph.inputs))
    if not is_array(data) and not isinstance(data, Mapping):
        return list(islice(iterate_batches(graph, data), n))
    next(iterate_batches(graph, data))  # checks all of it that is in memory
    named = named_inputs(graph, data)
    length = len(next(iter(named.values())))
    if any(isinstance(info.shape[0], int) for info in graph.inputs.values()):
        return list(islice(iterate_batches(graph, named), max(1, n)))
    at = np.linspace(0, length - 1, min(n, length)).astype(np.int64)
    some = {name: a.take(at) if isinstance(a, FileArray) else _rows(a, at) for name, a in named.items()}
    return list(iterate_batches(graph, some))


def _rows(a: Any, at: np.ndarray) -> np.ndarray:
    return np.asarray(a[at] if is_array(a) else np.asarray(a)[at])


def single_samples(graph: Graph, batches: list[Batch], n: int) -> list[Batch]:
    """Return n samples, evenly, each as a batch that a thread may take; whole batches if the network takes no less."""
    first = {info.shape[0] if info.shape else None for info in graph.inputs.values()}
    if len(first) == 1 and isinstance(first.pop(), str):
        batches = [{k: a[i : i + 1] for k, a in b.items()} for b in batches for i in range(len(next(iter(b.values()))))]
    return [batches[i] for i in np.unique(np.linspace(0, len(batches) - 1, n).astype(int))]


def network_gains(
    graph: Graph,
    batches: list[Batch],
    perturb: Callable[[Node], Sequence[np.ndarray]],
    names: Iterable[str],
    threads: int,
    corrected: Mapping[str, np.ndarray] | None = None,
) -> dict[str, list[Reach]]:
    """Measure the relative change of the network's outputs for one of each layer's outputs alone (both squared).

    Positions of texts that are padding count for nothing.

    Parameters
    ----------
    graph : Graph
    batches : list of dict of arrays
    perturb : callable
        Given a layer's node, returns other weights for it, with each of which there is a result.
    names : iterable of str
        Layers.
    threads : int
    corrected : dict of str to ndarray, shape (O,)
        Layers of which something makes up for the mean error of each output, with the factor by which each counts.
    """
    following = _Following(graph, batches, threads, corrected or {})
    found: dict[str, list[Reach]] = {}

    def visit(node: Node, values: Values, _: Values) -> None:
        right = following.products(node, values, node_params(graph, node)["weight"])
        found[node.name] = [following.reach(node, values, right, instead) for instead in perturb(node)]

    sweep(graph, batches, set(names), visit, threads)
    return found


class _Following:
    """Follows the errors of one layer to the outputs of the network."""

    def __init__(self, graph: Graph, batches: list[Batch], threads: int, corrected: Mapping[str, np.ndarray]) -> None:
        self.graph, self.threads, self.corrected, self.free = graph, threads, corrected, values_to_free(graph)
        self.real = [real_positions(batch) for batch in batches]
        self.clean = list(ordered_map(lambda batch: run_graph(graph, self.free, dict(batch)), batches, threads))
        self.scale = {
            name: sum(_energy(out[name], mask) for out, mask in zip(self.clean, self.real, strict=True))
            for name in graph.outputs
            if self.clean[0][name].dtype.kind == "f"
        }
        self.symbols = [graph.bind_symbols({n: a.shape for n, a in batch.items()}) for batch in batches]
        self.at = {node.name: i for i, node in enumerate(graph.nodes)}

    def products(self, node: Node, values: Values, weight: np.ndarray) -> list[np.ndarray]:
        """Return what a weight gives, without bias, of every batch."""

        def one(i: int) -> np.ndarray:
            if weight_op(node.op).is_product:
                inputs = [values[i][v] for v in node.inputs]
                return evaluate_node(node, inputs, {"weight": weight}, self.symbols[i])[0]
            product: np.ndarray = operand(self.graph, node, values[i]) @ weight.T
            return product

        return list(ordered_map(one, range(len(self.symbols)), self.threads))

    def reach(self, node: Node, values: Values, right: list[np.ndarray], instead: np.ndarray) -> Reach:
        """Tell what reaches the outputs of another weight; ``right`` are the products of the layer's own."""
        params, rule, factor = node_params(self.graph, node), weight_op(node.op), np.ones(1)
        changes, changed = self.products(node, values, instead - params["weight"]), {**params, "weight": instead}
        if node.name in self.corrected:
            axis = rule.channel_axis(changes[0].ndim)
            others = tuple(i for i in range(changes[0].ndim) if i != axis)
            mean, factor = _channel_means(changes, axis, self.real), np.expand_dims(self.corrected[node.name], others)
            changes = [x - np.expand_dims(mean, others) for x in changes]
            changed |= {"bias": params["bias"] - mean} if "bias" in params else {}
        energy, error = (
            sum(_energy(factor * x, mask) for x, mask in zip(y, self.real, strict=True)) for y in (right, changes)
        )
        # Other users of the weight see its error too.
        wrong = replace(self.graph, params={**self.graph.params, node.params["weight"]: instead})

        def reached(i: int) -> dict[str, float]:
            now = dict(values[i])
            inputs = [now[v] for v in node.inputs]
            if rule.is_product:
                now[node.outputs[0]] = evaluate_node(node, inputs, params, self.symbols[i])[0] + changes[i]
            else:
                now.update(zip(node.outputs, evaluate_node(node, inputs, changed, self.symbols[i]), strict=True))
            found = run_from(wrong, self.free, self.at[node.name] + 1, now, self.symbols[i])
            return {n: _energy(found[n] - self.clean[i][n], self.real[i]) for n in self.scale}

        tick(f"what an error of {node.name} does")
        parts = list(ordered_map(reached, range(len(changes)), self.threads))
        shares = [sum(part[n] for part in parts) / scale for n, scale in self.scale.items() if scale > 0]
        gain = float(np.mean(shares) * energy / error) if shares and error > 0 else 0.0
        return Reach(error / energy if energy > 0 else 0.0, gain)


def _energy(x: np.ndarray, real: np.ndarray | None) -> float:
    return float(np.square(without_padding(x, real), dtype=np.float64).sum())


def _channel_means(changes: list[np.ndarray], axis: int, real: list[np.ndarray | None]) -> np.ndarray:
    """Return the mean of each channel over all arrays, float32."""
    # without_padding joins the axes of texts and positions, before that of the features
    rows = [without_padding(np.moveaxis(x, axis, -1), mask) for x, mask in zip(changes, real, strict=True)]
    count = sum(x.size // x.shape[-1] for x in rows)
    total = sum(x.sum(tuple(range(x.ndim - 1)), np.float64) for x in rows)
    return np.asarray(total / count, np.float32)
