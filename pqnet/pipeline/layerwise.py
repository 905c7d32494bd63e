"""Quantization during one sweep over data: every layer sees what the layers already quantized give it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pqnet._threads import ordered_map
from pqnet.codecs.layout import block_columns
from pqnet.errors import ConfigError
from pqnet.graph import Node
from pqnet.graph.shift import find_shift
from pqnet.pipeline.moments import (
    build_metric,
    input_rows,
    layer_metric,
    output_gap,
    row_moments,
    row_weights,
    token_counts,
    token_error,
)
from pqnet.pipeline.run import Run

__all__ = ["FromData"]

# Of the moment, as a share of its mean diagonal, where targets are solved for: what the student's inputs cannot express
# stays with the float weight.
TARGET_DAMPING = 1e-2

_Rows = Callable[[int], tuple[np.ndarray, np.ndarray]]  # of a batch: what the student's filters see, and the teacher's


@dataclass
class _Inputs:
    """Moments of the inputs of a layer: the student's s, the teacher's t; float64, groups first."""

    moment: np.ndarray  # E[s s'], (G, Kin, Kin)
    cross: np.ndarray  # E[t s']
    mean: np.ndarray  # E[s], (G, Kin)
    taught_mean: np.ndarray  # E[t]

    @classmethod
    def measure(cls, rows: _Rows, batches: int, threads: int) -> "_Inputs":
        """Sum over all batches, in their order."""

        def one(i: int) -> tuple[list[np.ndarray], int]:
            seen, taught = rows(i)
            moment = np.matmul(seen.swapaxes(1, 2), seen)
            cross = moment if taught is seen else np.matmul(taught.swapaxes(1, 2), seen)
            return [moment, cross, seen.sum(1, np.float64), taught.sum(1, np.float64)], seen.shape[1]

        parts = ordered_map(one, range(batches), threads)
        first, count = next(parts)
        total = [part.astype(np.float64) for part in first]
        for more, n in parts:
            for sums, part in zip(total, more, strict=True):
                sums += part
            count += n
        return cls(*(sums / count for sums in total))

    def centred(self) -> "_Inputs":
        """Return the moments about the means."""
        moment = self.moment - self.mean[:, :, None] * self.mean[:, None, :]
        cross = self.cross - self.taught_mean[:, :, None] * self.mean[:, None, :]
        return _Inputs(moment, cross, self.mean, self.taught_mean)

    def target(self, weight: np.ndarray) -> np.ndarray:
        """Return the weight whose outputs from the student's inputs come nearest to the teacher's.

        T = W E[t s'] E[s s']^-1, damped.
        """
        n = self.moment.shape[1]
        scale = np.maximum(np.trace(self.moment, axis1=1, axis2=2) / n, 1e-30)
        damping = TARGET_DAMPING * scale[:, None, None] * np.eye(n)
        filters = weight.reshape(len(scale), -1, n).astype(np.float64)
        right = np.matmul(filters, self.cross + damping).swapaxes(1, 2)
        target = np.linalg.solve(self.moment + damping, right).swapaxes(1, 2)
        return target.astype(np.float32).reshape(weight.shape)

    def mean_shift(self, weight: np.ndarray, packed: np.ndarray) -> np.ndarray:
        """Return what must be added to the student's outputs for them to have the teacher's means, (O,)."""

        def means(filters: np.ndarray, inputs: np.ndarray) -> np.ndarray:
            grouped = filters.reshape(len(inputs), -1, inputs.shape[1]).astype(np.float64)
            return np.einsum("goi,gi->go", grouped, inputs).reshape(-1)

        return means(weight, self.taught_mean) - means(packed, self.mean)


class FromData:
    """Visits the nodes of a sweep, see `pqnet.pipeline.sweep`."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def visit(self, node: Node, inputs: list[np.ndarray], taught: list[np.ndarray]) -> None:
        """Quantize a layer, or measure a batch norm."""
        if node.name in self.run.codecs:
            if node.op == "embedding":
                self._embedding(node, inputs)
            else:
                self._matrix(node, inputs, taught)
        elif node.op == "batch_norm" and self.run.options.reestimate_norm:
            self._reestimate(node, inputs)

    def _embedding(self, node: Node, inputs: list[np.ndarray]) -> None:
        run, weight = self.run, self.run.weight(node)
        counts = np.sum([token_counts(ids, len(weight)) for ids in inputs], axis=0)
        packed = run.pack(node, weight, row_weights=row_weights(run.options.metric, counts))
        run.report[node.name]["output_error"] = token_error(counts, weight, packed.decode())

    def _matrix(self, node: Node, inputs: list[np.ndarray], taught: list[np.ndarray]) -> None:
        run, weight = self.run, self.run.weight(node)
        starts = np.cumsum([0, *(len(x) for x in inputs)])

        def rows(i: int) -> tuple[np.ndarray, np.ndarray]:
            seen = input_rows(node, weight.shape, inputs[i], int(starts[i]), run.options.seed)
            if taught[i] is inputs[i]:
                return seen, seen
            return seen, input_rows(node, weight.shape, taught[i], int(starts[i]), run.options.seed)

        offset = np.zeros(len(weight))
        if run.options.metric == "full":
            found = _Inputs.measure(rows, len(inputs), run.threads)
            shift = find_shift(run.graph, node) if run.options.correct_bias else None
            about = found if shift is None else found.centred()
            target = about.target(weight) if run.options.target == "teacher" else weight
            packed = run.pack(node, target, layer_metric("full", about.moment, weight.shape, run.codecs[node.name]))
            if shift is not None:
                offset = found.mean_shift(weight, packed.decode())
                shift(offset)
        else:
            packed = run.pack(node, weight, self._block_metric(node, weight.shape, rows, len(inputs)))
        dense = packed.decode()

        def gaps(i: int) -> np.ndarray:
            seen, wanted = rows(i)
            return output_gap(wanted, weight, seen, dense, offset)

        energy, error = sum(ordered_map(gaps, range(len(inputs)), run.threads), np.zeros(2))
        run.report[node.name]["output_error"] = float(error / energy) if energy > 0 else 0.0

    def _block_metric(self, node: Node, shape: tuple[int, ...], rows: _Rows, batches: int) -> np.ndarray | None:
        """Measure no more of the moments than the blocks on the diagonal."""
        if self.run.options.metric == "none":
            return None
        d, layout = self.run.codecs[node.name].blocks
        columns = block_columns(shape, layout)

        def moments(i: int) -> tuple[np.ndarray, int]:
            seen = rows(i)[0]
            return row_moments(seen, columns, d), seen.shape[1]

        parts = ordered_map(moments, range(batches), self.run.threads)
        total, count = next(parts)
        for part, n in parts:
            total += part
            count += n
        return build_metric(self.run.options.metric, total / count)

    def _reestimate(self, node: Node, inputs: list[np.ndarray]) -> None:
        if "mean" not in node.params or "var" not in node.params:
            raise ConfigError(
                f"reestimate_norm: expected batch norms with running statistics, got folded ones in {node.name!r}; "
                "quantize the float model, or pass reestimate_norm=False"
            )
        axes = (0, *range(2, inputs[0].ndim))

        def sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
            wide = x.astype(np.float64)
            return wide.sum(axes), np.square(wide).sum(axes), x.size // x.shape[1]

        parts = list(ordered_map(sums, inputs, self.run.threads))
        count = sum(n for _, _, n in parts)
        mean = np.sum([total for total, _, _ in parts], axis=0) / count
        square = np.sum([squares for _, squares, _ in parts], axis=0) / count
        with np.errstate(invalid="ignore"):  # of infinite inputs, which the next layer names
            var = np.maximum(square - mean**2, 0.0) * (count / max(count - 1, 1))
        self.run.graph.params[node.params["mean"]] = mean.astype(np.float32)
        self.run.graph.params[node.params["var"]] = var.astype(np.float32)
