"""What a weight operation is: how an operation computes with its parameter ``"weight"``, which a codec may replace.

Whatever needs to know asks here: sizes, rewrites, calibration, plans, quantization, permutation, training, recipes.
A new weight operation declares itself where it is registered, ``register(..., weight=WeightOp(...))``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pqnet.graph.op import OPS, get_op

__all__ = ["WeightOp", "is_weight", "rows_of_axis", "weight_op", "weight_ops"]

Attrs = Mapping[str, Any]
Windows = Callable[[np.ndarray, tuple[int, ...], Attrs], np.ndarray]
Operand = Callable[[Sequence[np.ndarray], Mapping[str, np.ndarray], Attrs], np.ndarray]


def rows_of_axis(x: np.ndarray, kernel: tuple[int, ...], attrs: Attrs) -> np.ndarray:
    """Return `WeightOp.windows` of an operation that multiplies the last axis of its input, (B, C, positions)."""
    return x.reshape(x.shape[0] if x.ndim > 1 else 1, -1, x.shape[-1]).swapaxes(1, 2)


@dataclass(frozen=True)
class WeightOp:
    """How an operation computes with its weight.

    The weight is in filter form, (O, C, *kernel): O filters of C channels at every tap of the kernel, (O, C) where
    there is none. At each of many positions every filter is multiplied with the C x taps numbers that it sees there;
    a parameter ``"bias"`` of O numbers, if the operation has one, is added to these products. With an attribute
    ``"groups"``, as many parts of the channels each have filters of their own.

    Parameters
    ----------
    kind : {"conv", "linear", "embedding", "recurrent"}
        What users choose by: recipes, presets, patterns.
    windows : callable, optional
        ``windows(operand, kernel, attrs)`` returns what the filters see, (B, C * groups, *kernel, *positions), a view
        where that can be. None if rows of the weight are looked up by number, not multiplied.
    kernel_axes : int
        Axes of the kernel, 0 to 3.
    channels_first : bool
        Whether channels are axis 1 of input and output; else they are the last axis.
    transposed : bool
        Whether it is the transpose of another convolution.
    operand : callable, optional
        ``operand(inputs, params, attrs)`` returns what the filters are multiplied with; by default the first input.
    is_product : bool
        Whether the first output is the products and nothing else, so that what follows may take over a scale and a
        shift of each.

    Examples
    --------
    >>> from pqnet.graph.layers import weight_ops
    >>> [name for name, rule in weight_ops().items() if rule.kernel_axes == 1]
    ['conv1d', 'conv_transpose1d']
    """

    kind: str
    windows: Windows | None
    kernel_axes: int = 0
    channels_first: bool = False
    transposed: bool = False
    operand: Operand | None = None
    is_product: bool = True

    @property
    def looked_up(self) -> bool:
        """Whether rows are looked up by number: what counts is how often each is, there are no second moments."""
        return self.windows is None

    def channel_axis(self, ndim: int) -> int:
        """Return the axis of the channels in an input (or operand) or output of so many axes."""
        return 1 if self.channels_first else ndim - 1

    def groups(self, attrs: Attrs) -> int:
        """Return in how many groups of channels the filters work."""
        return int(attrs.get("groups", 1))

    def moment_shape(self, shape: tuple[int, ...], attrs: Attrs) -> tuple[int, ...]:
        """Return the shape of the moments of what a weight of a shape sees: (G, Kin, Kin), or (V,) of a table."""
        if self.looked_up:
            return (shape[0],)
        n_inputs = math.prod(shape[1:])
        return (self.groups(attrs), n_inputs, n_inputs)

    def positions(self, output: tuple[int, ...]) -> int:
        """Return at how many positions of one sample the filters work, from the shape of the first output."""
        axis = self.channel_axis(len(output))
        return math.prod(size for i, size in enumerate(output) if i not in (0, axis))


def is_weight(op: str, role: str) -> bool:
    """Tell whether a role of an operation's parameters is a weight that a codec may replace."""
    return role == "weight" and get_op(op).weight is not None


def weight_op(op: str) -> WeightOp:
    """Return the definition of a weight operation by its name."""
    rule = get_op(op).weight
    assert rule is not None, f"{op} has no weight"
    return rule


def weight_ops() -> dict[str, WeightOp]:
    """Return all weight operations by name."""
    return {name: op.weight for name, op in OPS.items() if op.weight is not None}
