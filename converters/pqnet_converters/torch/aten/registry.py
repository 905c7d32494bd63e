"""The registry of rules; what is registered here is also what `from_torch` keeps torch.export from decomposing."""

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["RULES", "rule"]

RULES: dict[str, Callable[..., Any]] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def rule(*ops: str) -> Callable[[Function], Function]:
    """Register the decorated function as the meaning of some aten (or custom) operations.

    The function gets the `Importer`, then all arguments of the operation's schema in order, defaults filled in and
    keyword-only ones too; tensors arrive as `Tensor`, sizes as ints or expressions of the free symbol "batch".
    It emits nodes and returns the name of its value, or a `Tensor` it was given (the operation changes nothing);
    for several outputs a tuple of these, None for one that it cannot give.

    Parameters
    ----------
    ops : str
        Full names with the overload, as an exported program prints them.

    Examples
    --------
    >>> from pqnet_converters.torch.aten import rule
    >>> @rule("mylib.scaled_tanh.default")
    ... def scaled_tanh(b, x, scale):
    ...     return b.emit("mul", b.emit("tanh", x), scalar=scale)
    """

    def add(function: Function) -> Function:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return add
