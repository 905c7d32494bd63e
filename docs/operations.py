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

What a [model file](format.md#the-network) may name, by group. An operation computes what PyTorch's function of that
name does, or what its note says, in float32 where no type is named; the last word has the NumPy function in the module.
Attributes that have their default are not in a file. Written by `python docs/operations.py`.

`dims` are lists of sizes: integers, or integer expressions of the free sizes such as `"12*batch"`; `dim` is one size.
Parameters in brackets may be absent. Axes count from the front, from 0.
"""
CONV = (
    "of (batch, channels, size...); weight in filter form, (outputs, channels / groups, kernel...); padding: what is "
    "added before each axis, then after each"
)
TRANSPOSED = (
    "of (batch, channels, size...); weight (outputs, channels / groups, kernel...), PyTorch's with its first axes "
    "swapped in each group; padding: what is cut off before each axis, then after each"
)
SECOND = "the second operand is `scalar` where there is one input; `reverse` makes it the first"
# What the name, and PyTorch's function of that name, do not say.
NOTES = {
    "add": f"{SECOND}; so for all of arithmetic and comparison",
    "floor_div": "rounds down",
    "trunc_div": "rounds towards 0",
    "remainder": "has the sign of the divisor",
    "fmod": "has the sign of the dividend",
    "where": "condition, value where it is true, value elsewhere",
    "constant": "its parameter",
    "full": "one value everywhere",
    "arange": "int64, without the end",
    "attention": (
        "queries (..., L, E), keys (..., S, E), values (..., S, V), mask: added if it is float32, true where a "
        "key is seen if it is bool; no scale is 1 / sqrt(E); a query that sees nothing gives zeros"
    ),
    **{f"conv{n}d": CONV for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": TRANSPOSED for n in (1, 2, 3)},
    "interpolate": (
        "of (batch, channels, height, width); with `scale_height`, `scale_width` positions are those of these "
        "factors instead of the sizes' quotients"
    ),
    "nms": (
        "boxes (batch, n, 4), scores (batch, n), classes (batch, n): the numbers of the k best boxes that overlap"
        " no better one of their class by more than the threshold, 0 behind the last; and how many there are. "
        "Boxes with a score of -inf or NaN take no part"
    ),
    "roi_align": (
        "boxes (n, 4), number of the image of each, maps (batch, channels, height, width): images are counted "
        "through all maps; without a sampling ratio as many samples as a bin has pixels, rounded up"
    ),
    "paste_masks": (
        "masks (n, m, m), boxes (n, 4): images of zeros with each mask, with a border of one pixel, where its box"
        " is, bilinear"
    ),
    "heatmap_peaks": (
        "maps (n, points, m, m), boxes (n, 4): place (x, y) and height of the maximum of each map, resized to its"
        " box, bicubic"
    ),
    "linear": "along the last axis: x W' + bias",
    "embedding": "rows of the weight by number",
    "layer_norm": "over the last so many axes; sums in float64",
    "rms_norm": "over the last so many axes; sums in float64",
    "batch_norm": "along axis 1; what is absent is 1 (weight, var) or 0 (bias, mean)",
    "group_norm": "of channels along axis 1; sums in float64",
    "max_pool2d": "padding: before each axis, then after each",
    "avg_pool2d": "padding: before each axis, then after each; `divisor` in place of the number of pixels",
    "rnn": "products with the inputs (batch, steps, state), initial state; all outputs and the last state",
    "lstm": "products (batch, steps, 4 * state), initial state and memory; all outputs, last state and memory",
    "gru": "products (batch, steps, 3 * state), initial state; all outputs and the last state",
    "topk": "values and positions, in order; of equal ones the first comes first, NaN is largest",
    "scatter": (
        "target, places along the axis, updates; of several updates of one place the last stays, or all are reduced"
    ),
    "reshape": "one size may be -1",
    "slice": "as Python's, of one axis",
    "concat": "along one axis",
    "split": "an output for each size",
    "expand": "broadcasts",
    "pad": "two numbers for each axis, before and after, axis by axis; negative ones crop",
}


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
        lines += ["| operation | inputs | parameters | attributes | note |", "|---|---|---|---|---|"]
        for op in ops:
            params = ", ".join(name if required else f"({name})" for name, required in op.params.items())
            attributes = ", ".join(_attribute(name, attr) for name, attr in op.attrs.items())
            cells = (f"`{op.name}`", _inputs(op), params, attributes, NOTES.get(op.name, ""))
            lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), "utf-8")
