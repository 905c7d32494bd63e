"""Branches and loops whose course is known: they become what they compute."""

from typing import Any

from pqnet.errors import PQNetError
from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.core.sizes import Comparison, Symbolic
from pqnet_converters.onnx.importer import OnnxImporter, axis_of
from pqnet_converters.onnx.registry import rule

TRIPS = 1024  # rounds of a loop that is unrolled


def _way_out(b: OnnxImporter, x: Tensor) -> str:
    """Say on what a value depends, and how to make it known."""
    if x.data is None and (names := b.sources(x)):
        name = names[0]
        return f"it depends on the input {name!r}; give its value: values={{{name!r}: ...}} (--value {name}=...)"
    return "it depends on free sizes; fix them: shapes={name: [...]} (--input NAME=SHAPE)"


def _course(condition: Tensor) -> bool | None:
    """Return which branch is taken, if that is known.

    Where a size is compared with 1, to drop an axis, the network has values of one rank only in the branch that its
    sizes lead to: that at the sample of the free sizes, for which all that follows has to fit.
    """
    if condition.data is None or condition.data.size != 1:
        return None
    flag = condition.data.reshape(-1)[0]
    if not isinstance(flag, Comparison):
        return bool(flag)
    ones = any(not isinstance(n, Symbolic) and n == 1 for n in (flag.x, flag.y))
    return flag.sample if flag.op in ("eq", "ne") and ones else None


@rule("If")
def if_(b: OnnxImporter, condition: Tensor) -> tuple[Tensor, ...]:
    """Take the branch, or both where they agree in shape and dtype: nothing that they compute has an effect."""
    branches = b.attr("then_branch"), b.attr("else_branch")
    course = _course(condition)
    if course is not None:
        return tuple(b.body(branches[0 if course else 1], {}))
    try:
        then, other = (b.body(branch, {}) for branch in branches)
    except PQNetError as reason:  # a branch that does not fit these sizes, say
        raise b.refuse(f"expected a known condition; {_way_out(b, condition)} ({reason})") from None
    for x, y in zip(then, other, strict=True):
        if x.dtype != y.dtype or [str(n) for n in x.shape] != [str(n) for n in y.shape]:
            got = f"{x.dtype} {x.shape} and {y.dtype} {y.shape}"
            raise b.refuse(f"expected a known condition, or branches of one shape, got {got}; {_way_out(b, condition)}")
    flag = b.reshape(condition, ())
    return tuple(x if x is y else b.emit("where", flag, x, y) for x, y in zip(then, other, strict=True))


@rule("Loop")
def loop(b: OnnxImporter, trips: Tensor | None, condition: Tensor | None, *carried: Tensor) -> tuple[Tensor, ...]:
    body = b.attr("body")
    limit = None if trips is None else b.number(trips) if trips.data is not None else None
    if trips is not None and not isinstance(limit, int):
        raise b.refuse(f"expected a known number of rounds; {_way_out(b, trips)}")
    if limit is not None and type(limit) is not int:
        raise b.refuse(f"expected a known number of rounds, got {limit}")
    states, rows, done = list(carried), [], 0
    go = condition if condition is not None else as_known(True, "bool")
    while limit is None or done < limit:
        if go.constant is None:
            raise b.refuse(f"expected a loop whose end is known; {_way_out(b, go)}")
        if not go.constant.item():
            break
        if done >= TRIPS:
            raise b.refuse(f"expected a loop of at most {TRIPS} rounds")
        known = (as_known(done, "int64"), go, *states)
        found = b.body(body, {d.name: x for d, x in zip(body.inputs, known, strict=True)})
        go, states = found[0], found[1 : 1 + len(carried)]
        rows.append(found[1 + len(carried) :])
        done += 1
    return (*states, *_stacked(b, rows, len(body.outputs) - 1 - len(carried), [0] * len(body.outputs)))


def _stacked(b: OnnxImporter, rows: list[list[Tensor]], n: int, axes: list[int]) -> tuple[Tensor, ...]:
    """Join what each round gives along a new axis."""
    if n and not rows:
        raise b.refuse("a loop of no rounds has outputs without a shape")
    stacked = []
    for i in range(n):
        axis = axis_of(axes[i], rows[0][i].rank + 1)
        parts = [b.reshape(r[i], (*r[i].shape[:axis], 1, *r[i].shape[axis:])) for r in rows]
        stacked.append(parts[0] if len(parts) == 1 else b.emit("concat", *parts, axis=axis))
    return tuple(stacked)


@rule("Scan")
def scan(b: OnnxImporter, *inputs: Tensor) -> tuple[Tensor, ...]:
    body, n = b.attr("body"), b.attr("num_scan_inputs")
    states, sources = list(inputs[: len(inputs) - n]), inputs[len(inputs) - n :]
    carried = len(states)
    along = [axis_of(a, x.rank) for a, x in zip(b.attr("scan_input_axes", [0] * n), sources, strict=True)]
    backwards = b.attr("scan_input_directions", [0] * n)
    count = b.fixed(sources[0].shape[along[0]], "number of rounds")
    if count > TRIPS:
        raise b.refuse(f"expected a scan of at most {TRIPS} rounds, got {count}")
    rows: list[list[Tensor]] = []
    for t in range(count):
        now = []
        for x, axis, reverse in zip(sources, along, backwards, strict=True):
            at = count - 1 - t if reverse else t
            row = b.slice(x, axis, at, at + 1)
            now.append(b.reshape(row, [s for i, s in enumerate(row.shape) if i != axis]))
        found = b.body(body, {d.name: x for d, x in zip(body.inputs, (*states, *now), strict=True)})
        states = found[:carried]
        rows.append(found[carried:])
    outputs = len(body.outputs) - carried
    directions = b.attr("scan_output_directions", [0] * outputs)
    stacked = _stacked(b, rows, outputs, b.attr("scan_output_axes", [0] * outputs))
    axes = [axis_of(a, x.rank) for a, x in zip(b.attr("scan_output_axes", [0] * outputs), stacked, strict=True)]
    turned = (b.slice(x, a, None, None, -1) if d else x for x, a, d in zip(stacked, axes, directions, strict=True))
    return (*states, *turned)


@rule(
    *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
    *("SequenceMap", "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement"),
)
def sequences(b: OnnxImporter, *_: Any) -> Tensor:
    raise b.refuse("sequences and optional values have no rule; export the network with tensors only")


@rule("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
def random(b: OnnxImporter, *_: Any) -> Tensor:
    raise b.refuse("random numbers have no rule; make them an input of the network")
