"""The registry of rules."""

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["RULES", "rule"]

RULES: dict[str, Callable[..., Any]] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def rule(*ops: str) -> Callable[[Function], Function]:
    """Register the decorated function as the meaning of some ONNX operations.

    The function gets the `OnnxImporter` and the inputs of the node as `Tensor`, None for one that is left out at a
    place before others; give a default to those that may be missing at the end. It returns a `Tensor`, or a tuple of
    them for several outputs, None for one that it cannot give. ``b.attr(name, default)`` is an attribute of the node,
    ``b.opset`` the version of the operator set.

    Parameters
    ----------
    ops : str
        Names of operations, those of another domain than the standard's as ``"domain::name"``.

    Examples
    --------
    >>> from pqnet_converters.onnx.rules import rule
    >>> @rule("mylib::ScaledTanh")
    ... def scaled_tanh(b, x):
    ...     return b.emit("mul", b.emit("tanh", x), scalar=b.attr("scale", 1.0))
    """

    def add(function: Function) -> Function:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return add
