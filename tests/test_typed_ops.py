"""Operations on values of any dtype as kernels, against their NumPy meaning, bit for bit."""

import numpy as np
import pytest
from forced import FORCED, run_forced
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import GuardedSpace, untouched

import pqnet
from pqnet import PQNetError
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.kernels import simd
from pqnet.runtime.builder import HostStep, Upload
from pqnet.runtime.execute import run_graph, values_to_free
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program

BIG = 2**62 + 12345
DTYPES = ("float32", "int64", "bool")
ALL_DTYPES = (*DTYPES, "int32", "int16", "int8", "uint8")


def values(rng, shape, dtype):
    """Return an array with the numbers where types differ: large, negative, not numbers."""
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if dtype == "int64":
        whole = rng.integers(-4, 5, shape)
        return np.asarray(np.where(rng.random(shape) < 0.2, rng.choice([BIG, -BIG, 2**53 + 1], shape), whole))
    special = rng.choice(np.float32([np.nan, np.inf, -np.inf, 0, -0.0, 3e18, -1e30]), shape)
    return np.asarray(np.where(rng.random(shape) < 0.3, special, rng.integers(-4, 5, shape) / 2), np.float32)


def check(builder, outputs, inputs):
    """Compare a graph's program with NumPy, for 1 and 3 threads, and look at the memory around its values."""
    graph = builder.build(outputs)
    want = run_graph(graph, values_to_free(graph), inputs)
    program, space = Program(graph, {}, Store()), GuardedSpace()
    got = program.run(inputs, space, 1)
    assert untouched(program, space.arena)
    again = program.run(inputs, Workspace(), 3)
    for name, value in want.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        np.testing.assert_array_equal(got[name], value, err_msg=name)
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    assert not [s.node.op for s in program.segments if isinstance(s, HostStep)], "a node was left to NumPy"


def inputs_of(arrays):
    return GraphBuilder({name: ValueInfo(a.shape, a.dtype.name) for name, a in arrays.items()})


BINARY = ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "maximum", "minimum")


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 6), min_size=0, max_size=4),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    st.permutations(range(4)),
    st.integers(0, 2**32 - 1),
)
def test_two_operands_of_any_dtypes_and_shapes(shape, left, right, order, seed):
    rng = np.random.default_rng(seed)
    other = [s if rng.random() < 0.6 else 1 for s in shape][int(rng.integers(0, len(shape) + 1)) :]
    x = {"x": values(rng, shape, left), "y": values(rng, other, right), "c": values(rng, other, "bool")}
    b = inputs_of(x)
    axes = [axis for axis in order if axis < len(shape)]
    permuted = b.add("permute", b.add("permute", "x", axes=axes), axes=np.argsort(axes).tolist()) if shape else "x"
    known = b.add("constant", params={"value": values(rng, other, right)})
    outputs = {op: b.add(op, permuted, "y") for op in (*BINARY, "logical_and", "logical_or", "div")}
    outputs |= {f"{op} swapped": b.add(op, "y", permuted) for op in ("sub", "lt")}
    outputs |= {f"{op} known": b.add(op, permuted, known) for op in ("add", "ge", "logical_or")}
    outputs |= {"where": b.add("where", "c", permuted, "y"), "other": b.add("where", "c", known, permuted)}
    outputs |= {"not": b.add("logical_not", permuted)}
    check(b, outputs, x)


def test_where_chooses_bits_and_never_computes():
    x = {"c": np.array([True, False]), "x": np.float32([np.nan, np.inf]), "y": np.float32([1, -0.0])}
    b = inputs_of(x)
    check(b, {"y": b.add("where", *x), "n": b.add("where", "c", "y", "x")}, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars(dtype):
    x = {"x": values(np.random.default_rng(0), (3, 700), dtype)}
    b, outputs = inputs_of(x), {}
    for scalar in (0.0, 2.0, -1.0, 0.5):
        for op in BINARY:
            outputs[f"{op} {scalar}"] = b.add(op, "x", scalar=scalar)
        outputs[f"sub from {scalar}"] = b.add("sub", "x", scalar=scalar, reverse=True)
    if dtype == "int64":
        outputs |= {op: b.add(op, "x") for op in ("neg", "abs", "sign")}
        limits = [(-2.0, 3.0), (None, 1.0), (0.0, None), (-0.5, 2.0)]
        outputs |= {f"clamp {low} {high}": b.add("clamp", "x", min=low, max=high) for low, high in limits}
    check(b, outputs, x)


DIVISIONS = ("floor_div", "trunc_div", "remainder", "fmod")
BITS = ("bitwise_and", "bitwise_or", "bitwise_xor", "shift_left", "shift_right")


@pytest.mark.parametrize("left", ["int64", "int32", "int16", "int8", "uint8"])
def test_divisions_and_bits_of_integers(left):
    low, high = np.iinfo(left).min, np.iinfo(left).max
    x = {"x": np.array([low, low + 1, max(low, -7), 0, 3, 7, high - 1, high], left)[:, None]}
    for right in dict.fromkeys((left, "int8", "int64")):
        ends = np.iinfo(right).min, np.iinfo(right).max
        x[right] = np.array([*ends, 0, 1, 2, 3, 7, 8, 31, 32, 63, 64], right)
    x["-1"] = np.full(1, 255 if left == "uint8" else -1, left)
    b = inputs_of(x)
    outputs = {"not": b.add("bitwise_not", "x")}
    for op in DIVISIONS + BITS:
        outputs |= {f"{op} {name}": b.add(op, "x", name) for name in x if name != "x"}
        outputs |= {f"{op} by {scalar}": b.add(op, "x", scalar=scalar) for scalar in (3, -1, -4)}
        outputs[f"{op} of 5"] = b.add(op, "x", scalar=5, reverse=True)
    with np.errstate(all="ignore"):
        check(b, outputs, x)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["float32", "int64", "uint8"]))
def test_divisions_of_floats(seed, right):
    rng = np.random.default_rng(seed)
    large = (rng.standard_normal(40) * 10.0 ** rng.uniform(-9, 9, 40)).astype(np.float32)
    y = {"float32": lambda: np.append(values(rng, (9,), "float32"), large[:9] / np.float32(3))}
    x = {
        "x": np.append(values(rng, (20,), "float32"), large)[:, None],
        "y": y.get(right, lambda: rng.integers(0, 9, 7).astype(right))(),
    }
    b, outputs = inputs_of(x), {}
    for op in DIVISIONS:
        outputs |= {op: b.add(op, "x", "y"), f"{op} turned": b.add(op, "y", "x")}
        outputs |= {f"{op} by {scalar}": b.add(op, "x", scalar=scalar) for scalar in (0.3, -2, 0)}
        outputs[f"{op} of 5.5"] = b.add(op, "x", scalar=5.5, reverse=True)
    with np.errstate(all="ignore"):
        check(b, outputs, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_casts(dtype):
    x = {"x": values(np.random.default_rng(1), (40, 33), dtype)}
    b = inputs_of(x)
    check(b, {other: b.add("cast", "x", dtype=other) for other in DTYPES}, x)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_what_only_moves_elements(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    x = {"x": values(rng, shape, dtype), "y": values(rng, shape, dtype)}
    axis = int(rng.integers(len(shape)))
    order = rng.permutation(len(shape)).tolist()
    padding = rng.integers(-(min(shape) // 3), 3, 2 * len(shape)).tolist()
    b = inputs_of(x)
    permuted = b.add("permute", "x", axes=order)
    outputs = {
        "concat": b.add("concat", "x", "y", "x", axis=axis),
        "pad": b.add("pad", "x", padding=padding, value=float(rng.integers(3))),
        "flat": b.add("reshape", permuted, shape=(-1,)),
        "back": b.add("slice", permuted, axis=axis, start=100, stop=None, step=-2),
        "part": b.add("slice", "x", axis=axis, start=0, stop=None, step=2),
        "wide": b.add("expand", b.add("slice", "x", axis=axis, start=0, stop=1), shape=shape),
    }
    ids = rng.integers(0, shape[axis], 5)
    outputs["known ids"] = b.add("index_select", "x", b.add("constant", params={"value": ids}), axis=axis)
    check(b, outputs, x)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_index_select(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    x, b_outputs = {"x": values(rng, shape, dtype)}, {}
    for axis, size in enumerate(shape):
        x[f"ids{axis}"] = rng.integers(0, size, int(rng.integers(1, 30)))
    b = inputs_of(x)
    permuted = b.add("permute", "x", axes=list(range(len(shape)))[::-1])
    for axis in range(len(shape)):
        b_outputs[f"{axis}"] = b.add("index_select", "x", f"ids{axis}", axis=axis)
        b_outputs[f"{axis} permuted"] = b.add("index_select", permuted, f"ids{axis}", axis=len(shape) - 1 - axis)
    check(b, b_outputs, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_known_source_of_index_select_is_not_brought_anew_by_each_run(dtype):
    rng = np.random.default_rng(0)
    x = {"ids": rng.integers(0, 6, 9)}
    b = inputs_of(x)
    source = b.add("constant", params={"value": values(rng, (6, 5, 6), dtype)})
    outputs = {f"{axis}": b.add("index_select", source, "ids", axis=axis) for axis in (0, 2)}
    check(b, outputs, x)
    program = Program(b.build(outputs), {}, Store())
    assert [segment.value for segment in program.segments if isinstance(segment, Upload)] == ["ids"]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_reductions(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    x = {"x": values(rng, shape, dtype)}
    axes = sorted(rng.permutation(len(shape))[: int(rng.integers(1, len(shape) + 1))].tolist())
    b = inputs_of(x)
    permuted = b.add("permute", "x", axes=rng.permutation(len(shape)).tolist())
    outputs = {}
    if dtype != "bool":
        outputs = {op: b.add(op, permuted, axis=axes[0], keepdims=bool(seed % 2)) for op in ("argmax", "argmin")}
    if dtype != "float32":
        sums = ("sum", "prod", "max", "min")
        outputs |= {op: b.add(op, permuted, axes=axes, keepdims=bool(seed % 2)) for op in sums}
    check(b, outputs, x)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_products_and_variances_of_floats(shape, correction, seed):
    rng = np.random.default_rng(seed)
    x = {"x": rng.uniform(0.5, 1.5, shape).astype(np.float32)}
    x["near_one"] = rng.uniform(0.99, 1.01, shape).astype(np.float32)  # no product of so many is a denormal number
    axes = sorted(rng.permutation(len(shape))[: int(rng.integers(1, len(shape) + 1))].tolist())
    b = inputs_of(x)
    order = rng.permutation(len(shape)).tolist()
    outputs = {"prod": b.add("prod", b.add("permute", "near_one", axes=order), axes=axes, keepdims=True)}
    outputs["var"] = b.add("var", b.add("permute", "x", axes=order), axes=axes, correction=correction)
    graph = b.build(outputs)
    want = run_graph(graph, values_to_free(graph), x)
    program, space = Program(graph, {}, Store()), GuardedSpace()
    got = program.run(x, space, 1)
    assert untouched(program, space.arena)
    assert not [s for s in program.segments if isinstance(s, HostStep)]
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(ALL_DTYPES), st.integers(0, 2**32 - 1))
def test_along_rows_of_any_axis(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    x = {"x": values(rng, shape, "int64" if dtype not in DTYPES else dtype).astype(dtype)}
    b = inputs_of(x)
    permuted = b.add("permute", "x", axes=rng.permutation(len(shape)).tolist())
    part = b.add("slice", permuted, axis=int(rng.integers(len(shape))), start=0, stop=None, step=2)
    outputs, size = {}, b.build({"y": part}).infer_shapes({})[part].shape
    for axis in range(len(shape)):
        outputs |= {f"{op} {axis}": b.add(op, part, axis=axis) for op in ("cumsum", "cumprod")}
        for largest in (False, True) if dtype != "bool" else ():
            k = int(rng.integers(1, size[axis] + 1))
            found = b.add_many("topk", (part,), 2, axis=axis, k=k, largest=largest)
            outputs |= {f"topk {largest} {axis} {i}": value for i, value in enumerate(found)}
    check(b, outputs, x)


def test_running_sums_and_the_largest_of_long_rows():
    rng = np.random.default_rng(0)
    x = {"x": rng.uniform(0.9, 1.1, (3, 5000)).astype(np.float32), "ids": rng.integers(-9, 9, (2, 4000)) * BIG}
    b = inputs_of(x)
    outputs = {f"{op} {name}": b.add(op, name, axis=1) for op in ("cumsum", "cumprod") for name in x}
    for name, k in (("x", 1), ("x", 5000), ("ids", 700)):
        outputs |= {f"{name} {k} {i}": y for i, y in enumerate(b.add_many("topk", (name,), 2, axis=1, k=k))}
    check(b, outputs, x)


def tables(rng):
    """Return tables of 50 rows: dense, and packed by every codec that kernels read."""
    dense = rng.standard_normal((50, 24)).astype(np.float32)
    yield "dense", dense
    for k, d, dtype in ((256, 4, "float16"), (300, 3, "float16"), (2, 1, "int8"), (1, 8, "float32"), (37, 24, "int8")):
        yield (
            f"PQ {k} {d}",
            pqnet.PQ(k, d, clamp=None if k <= 50 * 24 // d else "floor", codebook_dtype=dtype).fit(dense),
        )
    yield "IntN tensor", pqnet.IntN(8).fit(dense)
    yield "IntN channel", pqnet.IntN(4, per="channel").fit(dense)
    yield "Scalar", pqnet.Scalar(5).fit(dense)
    yield "Fixed", pqnet.Fixed("ternary").fit(dense)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (16,), (3, 37), (2, 3, 5)])
def test_embeddings(shape):
    rng = np.random.default_rng(0)
    x = {"ids": rng.integers(0, 50, shape)}
    x["ids"] = np.where(rng.random(shape) < 0.1, 49, x["ids"]).astype(np.int64)
    for name, table in tables(rng):
        b = inputs_of(x)
        graph = b.build({"y": b.add("embedding", "ids", params={"weight": table})})
        program, space = Program(graph, {}, Store()), GuardedSpace()
        got = program.run(x, space, 1)["y"]
        assert untouched(program, space.arena)
        assert not [s for s in program.segments if isinstance(s, HostStep)], name
        want = run_graph(graph, values_to_free(graph), x)["y"]
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7, err_msg=name)
        assert np.array_equal(program.run(x, Workspace(), 3)["y"], got)


def test_tables_are_not_copied():
    rng = np.random.default_rng(0)
    for name, table in tables(rng):
        b = inputs_of({"ids": np.array([3])})
        program = Program(b.build({"y": b.add("embedding", "ids", params={"weight": table})}), {}, Store())
        stored = table if name == "dense" else table.codewords()[0].arrays()["codes"]
        assert stored.size == 0 or any(np.shares_memory(piece.array, stored) for piece in program.pieces), name


def test_rows_that_are_sums_are_left_to_numpy():
    table = pqnet.Additive([pqnet.PQ(4, 4), pqnet.PQ(4, 4)]).fit(np.random.default_rng(0).standard_normal((50, 24)))
    ids = np.array([[3, 49, 0]])
    np.testing.assert_allclose(pqnet.embedding(ids, table), table.decode()[ids], rtol=1e-6)


@pytest.mark.parametrize("bad", [-1, 50, 2**62, -(2**63)])
@pytest.mark.parametrize("computed", [False, True])
def test_ids_out_of_range_are_refused_before_anything_uses_them(bad, computed):
    rng = np.random.default_rng(0)
    x = {"ids": np.array([3, bad, 49, 0])}
    for op in ("embedding", "index_select"):
        b = inputs_of(x)
        ids = b.add("mul", "ids", scalar=1.0) if computed else "ids"
        table = rng.standard_normal((50, 24)).astype(np.float32)
        if op == "embedding":
            y = b.add(op, ids, name="rows", params={"weight": table})
        else:
            y = b.add(op, b.add("constant", params={"value": table}), ids, name="rows", axis=0)
        graph = b.build({"y": y})
        program, space = Program(graph, {}, Store()), GuardedSpace()
        low, high = min(bad, 0), max(bad, 49)
        wanted = rf"node 'rows' \({op}\): ids: expected entries in \[0, 50\), got range \[{low}, {high}\]"
        with pytest.raises(PQNetError, match=wanted):
            run_graph(graph, values_to_free(graph), x)
        with pytest.raises(PQNetError, match=wanted):
            program.run(x, space, 2)
        assert untouched(program, space.arena)
        fine = {"ids": np.array([3, 5, 49, 0])}
        assert np.array_equal(program.run(fine, space, 2)["y"], table[fine["ids"]])


@pytest.mark.parametrize("shape", [(2, 1, 20, 31), (2, 1, 1, 31), (31,), (2, 3, 20, 1), (1, 3, 20, 31)])
def test_attention_with_masks_of_booleans(shape):
    rng = np.random.default_rng(0)
    sizes = {"q": (2, 3, 20, 8), "k": (2, 3, 31, 8), "v": (2, 3, 31, 5)}
    x = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    x["m"] = rng.random(shape) < 0.6
    x["m"].flat[:31] = False  # with some shapes a query that may attend to nothing
    b = inputs_of(x)
    y = b.add("attention", *x)
    graph = b.build({"y": y})
    want = run_graph(graph, values_to_free(graph), x)["y"]
    program, space = Program(graph, {}, Store()), GuardedSpace()
    np.testing.assert_allclose(program.run(x, space, 1)["y"], want, rtol=1e-5, atol=1e-6)
    assert untouched(program, space.arena)
    assert not [s for s in program.segments if isinstance(s, HostStep)]


def test_layers_share_the_terms_of_a_mask():
    rng = np.random.default_rng(0)
    x = {"x": rng.standard_normal((2, 2, 9, 4)).astype(np.float32), "m": rng.random((2, 1, 1, 9)) < 0.8}
    b = inputs_of(x)
    y = "x"
    for _ in range(3):
        y = b.add("attention", y, y, y, "m")
    program = Program(b.build({"y": y}), {}, Store())
    assert [step.algorithm for _, _, step in program.kernel_steps()].count("typed") == 1


SCRIPT = """
import numpy as np
import test_typed_ops as t
with np.errstate(all="ignore"):
    for dtype in t.DTYPES:
        t.test_casts(dtype)
    t.test_scalars("int64")
    t.test_divisions_and_bits_of_integers("int64")
    t.test_embeddings((3, 5))
    t.test_index_select.hypothesis.inner_test([3, 5, 2], "bool", 0)
    t.test_reductions.hypothesis.inner_test([3, 5, 2], "int64", 1)
    t.test_products_and_variances_of_floats.hypothesis.inner_test([3, 5, 2], 1, 0)
    for dtype in ("float32", "int16"):
        t.test_along_rows_of_any_axis.hypothesis.inner_test([3, 5, 2], dtype, 1)
    t.test_what_only_moves_elements.hypothesis.inner_test([3, 5, 2], "int64", 0)
    t.test_two_operands_of_any_dtypes_and_shapes.hypothesis.inner_test([3, 5], "float32", "int64", [1, 0, 2, 3], 0)
print(t.simd.ISA)
"""


@pytest.mark.parametrize("settings_", FORCED)
def test_the_same_under_each_instruction_set_and_without_a_compiler(settings_):
    assert run_forced(SCRIPT, settings_) == settings_.get("PQNET_SIMD", simd.ISA)
