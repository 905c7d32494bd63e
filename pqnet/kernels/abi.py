"""The arguments of steps: every kernel declares their names once, kernels and programs use the same names.

A step of a program is a kernel, a number of tasks and a record of int64 arguments. `Arguments` declares the fields of
a record and what each of them is; a kernel reads them as ``g.name``, a program fills them by keyword. All kernels of
steps take the same arrays:

    kernel(task, g, data, const, codes, index, scratch)

``data`` is the arena with the values of the network (float32; `pointers.longs` and the like see it as other types),
``const`` float32 parameters, ``codes`` bytes, ``index`` int64 tables, ``scratch`` float32 memory of the thread.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import from_dtype, types

from pqnet.kernels.cache import compiled
from pqnet.kernels.llvm import COMPILED

__all__ = [
    *("CODES", "CONST", "DATA", "FLAG", "INDEX", "SCRATCH", "SIZE"),
    *("MAYBE_CODES", "MAYBE_CONST", "MAYBE_DATA", "MAYBE_INDEX"),
    *("Arguments", "Kind", "StepKernel", "step"),
]


@dataclass(frozen=True)
class Kind:
    """What an argument is: an offset into an array of the kernel, counted in its elements, or a plain value."""

    array: str = ""
    optional: bool = False  # -1 stands for "there is none"
    count: int = 0  # of values in a row, read as g.name[i]; 0: a single one, read as g.name

    def repeated(self, count: int) -> "Kind":
        """Return the kind of a row of so many values."""
        return replace(self, count=count)


SIZE, FLAG = Kind(), Kind()
DATA, CONST, CODES, INDEX, SCRATCH = (Kind(name) for name in ("data", "const", "codes", "index", "scratch"))
MAYBE_DATA, MAYBE_CONST, MAYBE_CODES, MAYBE_INDEX = (
    Kind(name, optional=True) for name in ("data", "const", "codes", "index")
)


class Arguments:
    """Names and kinds of the arguments of a kernel; some may be a group, which is an `Arguments` of its own.

    Examples
    --------
    >>> SCALE = Arguments(x=DATA, n=SIZE, steps=SIZE.repeated(2))
    >>> [name for name, _, _ in SCALE.flat({"x": 16, "n": 3, "steps": (3, 1)})]
    ['x', 'n', 'steps[0]', 'steps[1]']
    """

    def __init__(self, **kinds: "Kind | Arguments") -> None:
        self.kinds = kinds
        self.flat_kinds: list[tuple[str, Kind]] = []  # groups and rows of values taken apart
        fields: list[Any] = []
        for name, kind in kinds.items():
            if hasattr(np.record, name):  # g.name would be that of the record, where nothing is compiled
                raise TypeError(f"argument {name}: expected a name that records of NumPy do not have")
            if isinstance(kind, Arguments):
                fields.append((name, kind.dtype))
                self.flat_kinds += [(f"{name}.{inner}", of) for inner, of in kind.flat_kinds]
            elif kind.count:
                fields.append((name, np.int64, (kind.count,)))
                self.flat_kinds += [(f"{name}[{i}]", kind) for i in range(kind.count)]
            else:
                fields.append((name, np.int64))
                self.flat_kinds.append((name, kind))
        self.plain = all(isinstance(kind, Kind) and not kind.count for kind in kinds.values())
        self.dtype = np.dtype(fields, align=True)

    def values(self, given: Mapping[str, Any], where: str = "") -> list[Any]:
        """Return the values of all arguments in the order of the record; names must be those declared."""
        if given.keys() != self.kinds.keys():
            missing, unknown = self.kinds.keys() - given.keys(), given.keys() - self.kinds.keys()
            raise TypeError(f"arguments {where or 'of a step'}: missing {sorted(missing)}, unknown {sorted(unknown)}")
        if self.plain:
            return [given[name] for name in self.kinds]
        found: list[Any] = []
        for name, kind in self.kinds.items():
            value = given[name]
            if isinstance(kind, Arguments):
                found += kind.values(value, f"{where}{name}.")
            elif kind.count:
                if len(value) != kind.count:
                    raise TypeError(f"argument {where}{name}: expected {kind.count} values, got {len(value)}")
                found += value
            else:
                found.append(value)
        return found

    def flat(self, given: Mapping[str, Any]) -> Iterator[tuple[str, Kind, Any]]:
        """Yield name, kind and value of every argument in the order of the record."""
        return ((name, kind, value) for (name, kind), value in zip(self.flat_kinds, self.values(given), strict=True))

    def record(self, given: Mapping[str, Any]) -> Any:
        """Return the record of integer values, as a kernel that is not compiled takes it, too."""
        return np.array(self.values(given), np.int64).view(np.dtype((np.record, self.dtype)))[0]


class StepKernel:
    """A kernel of steps and the arguments that it declares."""

    def __init__(self, function: Any, arguments: Arguments) -> None:
        self.function, self.arguments = function, arguments
        self.name: str = function.__name__
        self._address: Any = None

    def address(self) -> Any:
        """Return what the driver calls the kernel by: the address of its machine code, compiled when first asked."""
        if not COMPILED:
            return self.function
        if self._address is None:
            code = compiled(self.function, signature_of(from_dtype(self.arguments.dtype)))
            self._address = code.library.get_pointer_to_function(code.fndesc.llvm_func_name)
        return self._address


def signature_of(record: Any) -> tuple[Any, ...]:
    """Return the Numba types of a kernel's arguments, those of the step being of type ``record``."""
    floats, longs = types.Array(types.float32, 1, "C"), types.Array(types.int64, 1, "C")
    return types.intp, record, floats, floats, types.Array(types.uint8, 1, "C"), longs, floats


def step(arguments: Arguments) -> Callable[[Any], StepKernel]:
    """Declare the arguments of a kernel; stands above ``njit``."""
    return lambda function: StepKernel(function, arguments)
