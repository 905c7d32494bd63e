"""Free sizes: which axes users leave free, as torch.export takes them, and its size expressions as the graph's."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from sympy import Add, Mul
from torch.export.dynamic_shapes import _DimHint, _DimHintType
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from pqnet.errors import PQNetError

__all__ = [
    "Axes",
    "Dynamic",
    "Expression",
    "conditions",
    "free_axes",
    "fraction_text",
    "graph_sizes",
    "of_quotients",
    "size_text",
    "widened",
]

Axes: TypeAlias = dict[str, dict[int, Any]]  # input name -> axis -> torch.export.Dim
Dynamic: TypeAlias = Mapping[Any, Any] | Sequence[Any]

LONGEST = 1000  # characters of a condition that a graph takes
FREE = (_DimHintType.AUTO, _DimHintType.DYNAMIC)


class Expression(str):
    """A size that depends on free symbols, an integer expression of their names."""


def free_axes(
    examples: Mapping[str, torch.Tensor], names: Sequence[str], dynamic: Dynamic | None, dynamic_batch: bool
) -> Axes:
    """Return the free axes of every example, one `torch.export.Dim` for each name.

    ``dynamic`` is by name of the example or of the graph's input, in calling order, or, of one tensor, its axes alone.
    """
    specs = _by_example(list(examples), names, dynamic)
    dims: dict[str, Any] = {}
    axes: Axes = {}
    for name, x in examples.items():
        spec = _by_axis(specs.get(name), x, name)
        if dynamic_batch and 0 not in spec:
            spec = {0: "batch", **spec}
        found = {axis: _dim(size, name, axis) for axis, size in spec.items()}
        axes[name] = {axis: dims.setdefault(dim.__name__, dim) for axis, dim in found.items() if dim is not None}
    return axes


def _by_example(keys: list[str], names: Sequence[str], dynamic: Dynamic | None) -> Mapping[str, Any]:
    if dynamic is None:
        return {}
    if isinstance(dynamic, Mapping) and all(isinstance(key, int) for key in dynamic) and len(keys) == 1:
        return {keys[0]: dynamic}
    if isinstance(dynamic, Mapping):
        known = {**dict(zip(names, keys, strict=True)), **{key: key for key in keys}}
        if unknown := [key for key in dynamic if key not in known]:
            raise PQNetError(f"dynamic: expected the names of inputs, {list(names)}, got {unknown[0]!r}")
        return {known[key]: spec for key, spec in dynamic.items()}
    if isinstance(dynamic, str) or not isinstance(dynamic, Sequence) or len(dynamic) != len(keys):
        raise PQNetError(f"dynamic: expected free axes for the inputs {list(names)}, got {dynamic!r}")
    return dict(zip(keys, dynamic, strict=True))


def _by_axis(spec: Any, x: torch.Tensor, name: str) -> dict[int, Any]:
    if spec is None:
        return {}
    if isinstance(spec, Sequence) and not isinstance(spec, str) and len(spec) == x.dim():
        return dict(enumerate(spec))
    if isinstance(spec, Mapping) and all(isinstance(a, int) and -x.dim() <= a < x.dim() for a in spec):
        return {axis % x.dim(): size for axis, size in spec.items()}
    raise PQNetError(
        f"dynamic: expected a dict from axes of input {name!r}, of shape {tuple(x.shape)}, to names such as 'tokens', "
        f"got {spec!r}"
    )


def _dim(size: Any, name: str, axis: int) -> Any:
    """Return the `torch.export.Dim` of a free axis, None for a fixed one."""
    if size is None or isinstance(size, int) or (isinstance(size, _DimHint) and size.type not in FREE):
        return None
    if isinstance(size, _DimHint):
        size = f"{name}_{axis}"
    if isinstance(size, str) and size.isidentifier():
        return torch.export.Dim(size, min=1)
    if isinstance(size, torch.export.Dim) and size.__name__.isidentifier():
        return size
    raise PQNetError(f"dynamic: expected a name or a torch.export.Dim for axis {axis} of input {name!r}, got {size!r}")


def widened(examples: Mapping[str, torch.Tensor], free: Axes) -> dict[str, torch.Tensor]:
    """Return the examples, repeated along free axes of size 1, which torch.export would take as fixed."""
    sizes: dict[str, dict[str, int]] = {}
    for name, x in examples.items():
        for axis, dim in free[name].items():
            sizes.setdefault(dim.__name__, {})[f"axis {axis} of {name!r}"] = x.shape[axis] if x.dim() else 0
    for dim, found in sizes.items():
        if len(set(found.values())) != 1 or 0 in found.values():
            shapes = {name: tuple(x.shape) for name, x in examples.items()}
            if dim == "batch":
                raise PQNetError(
                    f"example_inputs: expected one batch size along axis 0 of all, got {shapes}; pass "
                    "dynamic_batch=False, or dynamic={name: {0: None}} for the inputs that have no batch"
                )
            raise PQNetError(f"example_inputs: expected one size of {dim!r}, at least 1, got {found}")
    out = {}
    for name, x in examples.items():
        for axis in free[name]:
            x = torch.cat([x, x], axis) if x.shape[axis] == 1 else x
        out[name] = x
    return out


def graph_sizes(
    vals: Mapping[str, torch.Tensor], free: Axes
) -> tuple[dict[str, tuple[int | str, ...]], dict[str, int], dict[str, str]]:
    """Return the graph's input shapes, an example of each free size, and what torch's symbols are in terms of these.

    torch's symbol may be a part of the size: of a height that has to be a multiple of 32 it is the 32nd part.
    """
    shapes: dict[str, tuple[int | str, ...]] = {}
    sizes: dict[str, int] = {}
    texts: dict[str, str] = {}
    for name, val in vals.items():
        shape: list[int | str] = []
        for axis, size in enumerate(val.shape):
            if isinstance(size, int) or size.node.expr.is_number:
                if axis in free[name]:
                    raise _fixed_size(free[name][axis].__name__, int(size))
                shape.append(int(size))
                continue
            symbol, own = size.node.expr, free[name][axis].__name__
            if not symbol.is_Symbol:
                (symbol,) = symbol.free_symbols
                factor, rest = size.node.expr.coeff(symbol), size.node.expr.subs(symbol, 0)
                texts.setdefault(str(symbol), f"(({own}-{rest})//{factor})" if rest else f"({own}//{factor})")
            elif texts.setdefault(str(symbol), own).isidentifier():
                own = texts[str(symbol)]  # torch found two sizes to be the same
            shape.append(own)
            sizes[own] = int(size.node.hint)
        shapes[name] = tuple(shape)
    return shapes, sizes, texts


def _fixed_size(name: str, size: int) -> PQNetError:
    if name == "batch":
        return PQNetError(
            f"module: expected one that works for every batch size, got one whose code makes it the constant ({size}); "
            "pass dynamic_batch=False to fix the batch size to that of example_inputs"
        )
    return PQNetError(
        f"module: expected one that works for every size of {name!r}, got one whose code makes it the constant {size}; "
        f"leave {name!r} out of dynamic to fix it to that of example_inputs"
    )


def conditions(program: Any, names: Mapping[str, str]) -> list[str]:
    """Return what torch.export found to hold for all sizes that a program is right for, as the graph has it.

    Sizes of 0 and 1 it takes for others; the graph knows what they are.
    """
    limits = {key: bounds for key, bounds in program.range_constraints.items() if str(key) in names}
    for key, bounds in limits.items():
        if bounds.lower == bounds.upper and names[str(key)].isidentifier():
            raise _fixed_size(names[str(key)], int(bounds.lower))
    found = [f"{bounds.upper}-{names[str(key)]}" for key, bounds in limits.items() if bounds.upper.is_Integer]
    found += [f"{names[str(key)]}-{bounds.lower}" for key, bounds in limits.items() if bounds.lower > 2]
    for node in program.graph.nodes:
        val = node.args[0].meta.get("val") if str(node.target) == "aten._assert_scalar.default" else None
        text = _condition(val.node.expr, names) if isinstance(val, torch.SymBool) else None
        found += [text] if text is not None and len(text) <= LONGEST else []
    return list(dict.fromkeys(found))


def _condition(relation: Any, names: Mapping[str, str]) -> str | None:
    kind = type(relation).__name__
    if kind not in ("Equality", "Unequality", *("LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan")):
        return None
    sides = _reduced(*relation.args) if kind in ("Unequality", "StrictGreaterThan", "StrictLessThan") else relation.args
    if kind == "Unequality" and any(side in (0, 1) for side in sides):
        return None
    left, right = (size_text(side, names) for side in sides)
    if left is None or right is None:
        return None
    for own, other in ((left, relation.args[1]), (right, relation.args[0])):
        if kind == "Equality" and own in names.values() and own.isidentifier() and other.is_Integer:
            raise _fixed_size(own, int(other))
    if kind in ("Equality", "Unequality"):
        return (
            None
            if left == right
            else f"0-({left}-({right}))*({left}-({right}))"
            if kind == "Equality"
            else (f"({left}-({right}))*({left}-({right}))-1")
        )
    small, large = (left, right) if "Less" in kind else (right, left)
    if kind.startswith("Strict") and small in ("0", "1"):
        return None
    return f"{large}-({small})" + ("-1" if kind.startswith("Strict") else "")


def _reduced(left: Any, right: Any) -> tuple[Any, Any]:
    """Leave out the sizes by which both sides of an inequality are multiplied: of batch*n != n, batch != 1 is left."""
    factors = [Counter(Mul.make_args(side)) for side in (left, right)]
    common = Counter({f: n for f, n in (factors[0] & factors[1]).items() if _least(f) >= 0})
    first, second = (Mul(*(each - common).elements()) for each in factors)
    return first, second


def _least(factor: Any) -> Any:
    return bound_sympy(factor, {symbol: ValueRanges(1, int_oo) for symbol in factor.free_symbols}).lower


def size_text(expr: Any, names: Mapping[str, str]) -> str | None:
    """Return a size of sympy as an integer expression of free symbols, None if it is none."""
    found = fraction_text(of_quotients(expr), names)
    if found is None:
        return None
    return found[0] if found[1] == "1" else f"{found[0]}//{found[1]}"


@lru_cache(maxsize=4096)
def of_quotients(expr: Any) -> Any:
    """Return a size of sympy without remainders: what is padded to a multiple becomes one quotient, of any length.

    A remainder of 2 is also that of the negative number; the shorter expression is returned.
    """
    if not expr.has(Mod, PythonMod):
        return expr
    return min((_rewritten(expr, sign) for sign in (1, -1)), key=lambda found: len(str(found)))


def _rewritten(expr: Any, sign: int) -> Any:
    args = [_rewritten(arg, sign) for arg in expr.args]
    if not isinstance(expr, Mod | PythonMod):
        return expr.func(*args) if args else expr
    number, divisor = args
    if divisor.is_Integer:  # its multiples change no remainder
        terms = Add.make_args(number)
        number = Add(*(t for t in terms if not t.is_integer or t.as_coeff_Mul()[0] % divisor))
        number = sign * number if divisor == 2 else number
    return number - divisor * FloorDiv(number, divisor)


def fraction_text(expr: Any, names: Mapping[str, str]) -> tuple[str, str] | None:
    """Return numerator and denominator, both integer expressions of the graph's symbols, of a number of sympy."""
    kind = type(expr).__name__
    if expr.is_Symbol:
        return (names[str(expr)], "1") if str(expr) in names else None
    if expr.is_Rational or expr.is_Float:
        number = Fraction(int(expr.p), int(expr.q)) if expr.is_Rational else _near(float(expr))
        return str(number.numerator) if number >= 0 else f"({number.numerator})", str(number.denominator)
    parts = [fraction_text(arg, names) for arg in expr.args]
    if any(part is None for part in parts):
        return None
    known: list[tuple[str, str]] = [part for part in parts if part is not None]
    if kind in ("ToFloat", "Identity"):
        return known[0]
    if kind == "Add":
        return _sum(known)
    if kind == "Mul":
        return _product(known)
    if kind == "Pow" and expr.exp.is_Integer and 0 < expr.exp <= 4:
        return _product(known[:1] * int(expr.exp))
    if kind in ("IntTrueDiv", "FloatTrueDiv"):
        return _product([known[0], known[1][::-1]])
    if kind in ("FloorDiv", "CleanDiv", "FloorToInt", "floor", "TruncToInt", "CeilToInt", "ceiling"):
        top, bottom = known[0] if len(known) == 1 else _product([known[0], known[1][::-1]])
        if kind in ("CeilToInt", "ceiling"):
            return f"(-((-{top})//{bottom}))", "1"
        return (top if bottom == "1" else f"({top}//{bottom})"), "1"
    if kind in ("Max", "Min") and all(bottom == "1" for _, bottom in known):
        return "(" + f" {kind.lower()} ".join(top for top, _ in known) + ")", "1"
    return None


def _near(number: float) -> Fraction:
    """Return the simplest fraction that is this float: a third is one, though floats are binary."""
    simple = Fraction(number).limit_denominator(4096)
    return simple if float(simple) == number else Fraction(number)


def _sum(terms: Sequence[tuple[str, str]]) -> tuple[str, str]:
    bottom = terms[0][1]
    if all(term[1] == bottom for term in terms):
        return "(" + "+".join(top for top, _ in terms) + ")", bottom
    product = _product([(b, "1") for _, b in terms])[0]
    tops = [
        _product([(top, "1"), *((b, "1") for j, (_, b) in enumerate(terms) if j != i)])[0]
        for i, (top, _) in enumerate(terms)
    ]
    return "(" + "+".join(tops) + ")", product


def _product(factors: Sequence[tuple[str, str]]) -> tuple[str, str]:
    def times(parts: list[str]) -> str:
        parts = [part for part in parts if part != "1"]
        return parts[0] if len(parts) == 1 else f"({'*'.join(parts)})" if parts else "1"

    return times([top for top, _ in factors]), times([bottom for _, bottom in factors])
