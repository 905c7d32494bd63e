"""Writes `operations.md`, the table of all operations that a model file may name, from pqnet's registry of them.

Example: ``python docs/operations.py``
"""

import functools
import sys
from collections import defaultdict
from pathlib import Path

from pqnet.graph import OPS
from pqnet.graph.op import REQUIRED, Attr, Op

HEAD = """# Operations

What a [model file](format.md#the-network) may name, by group. An operation computes what
PyTorch's function of that name does, in float32 where no type is named, unless its group says otherwise; its exact
meaning is the NumPy function in the module named. Attributes that have their default are not in a file. Written by
`python docs/operations.py`.

`dims` are lists of sizes: integers, or integer expressions of the free sizes such as `"12*batch"`; `dim` is one size.
Padding is `(before, ..., after, ...)` in the order of the axes. Parameters in brackets may be absent.
"""


def _module(op: Op) -> str:
    function = op.infer
    while isinstance(function, functools.partial):
        function = function.func
    return function.__module__


def _inputs(op: Op) -> str:
    if op.max_inputs > 1000:
        return f"{op.min_inputs} or more"
    return str(op.min_inputs) if op.min_inputs == op.max_inputs else f"{op.min_inputs} to {op.max_inputs}"


def _attribute(name: str, attr: Attr) -> str:
    kind = " or ".join(f'"{option}"' for option in attr.options) if attr.options else attr.kind
    kind += f" of {attr.length}" if attr.length is not None else ""
    if attr.default is REQUIRED:
        return f"`{name}`: {kind}"
    default = f'"{attr.default}"' if isinstance(attr.default, str) else attr.default
    default = list(default) if isinstance(default, tuple) else default
    return f"`{name}`: {kind} = {'none' if default is None else default}"


def page() -> str:
    """Return the page."""
    groups: dict[str, list[Op]] = defaultdict(list)
    for op in OPS.values():
        groups[_module(op)].append(op)
    lines = [HEAD]
    for module, ops in sorted(groups.items()):
        text = (sys.modules[module].__doc__ or "").strip()
        lines += [f"## {module.rpartition('.')[2].capitalize()}", "", text, "", f"Module `{module}`.", ""]
        lines += ["| operation | inputs | parameters | attributes |", "|---|---|---|---|"]
        for op in ops:
            params = ", ".join(name if required else f"({name})" for name, required in op.params.items())
            attributes = ", ".join(_attribute(name, attr) for name, attr in op.attrs.items())
            lines.append(f"| `{op.name}` | {_inputs(op)} | {params} | {attributes} |".replace("|  |", "| |"))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), "utf-8")
