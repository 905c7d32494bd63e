"""ONNX models as pqnet models: options, free sizes, control flow, quantized weights, names, and every kind of error."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxfiles import assert_agrees, noise, parse, runtime

from pqnet import FormatError, Model, PQNetError, UnsupportedOpError
from pqnet_converters import from_onnx
from pqnet_converters.onnx.rules import RULES, rule


def imported(text: str, opset: int = 17, **options: Any) -> Model:
    return from_onnx(parse(text, opset).SerializeToString(), **options)


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


# ---- free sizes

CHAINS = {
    "reshape": """n (float[b, s, 6] x) => (float[b, t] y) {
        shape = Shape(x)  zero = Constant<value = int64 {0}>()  batch = Gather(shape, zero)
        one = Constant<value = int64[1] {0}>()  first = Unsqueeze(batch, one)
        rest = Constant<value = int64[1] {-1}>()  wanted = Concat<axis = 0>(first, rest)
        y = Reshape(x, wanted) }""",
    "expand a range": """n (float[b, s, 6] x) => (float[b, s, 6] y) {
        shape = Shape(x)  one = Constant<value = int64 {1}>()  zero = Constant<value = int64 {0}>()
        size = Gather(shape, one)  count = Range(zero, size, one)  axes = Constant<value = int64[1] {-1}>()
        column = Unsqueeze(count, axes)  wide = Expand(column, shape)  real = Cast<to = 1>(wide)  y = Add(x, real) }""",
    "slice by half": """n (float[b, s, 6] x) => (float[b, t, 6] y) {
        shape = Shape<start = 1, end = 2>(x)  two = Constant<value = int64[1] {2}>()  half = Div(shape, two)
        zero = Constant<value = int64[1] {0}>()  axes = Constant<value = int64[1] {1}>()
        y = Slice(x, zero, half, axes) }""",
    "last rows, backwards": """n (float[b, s, 6] x) => (float[b, t, 6] y) {
        last = Constant<value = int64[1] {-1}>()  far = Constant<value = int64[1] {-4}>()
        axes = Constant<value = int64[1] {1}>()  y = Slice(x, last, far, axes, last) }""",
    "zeros of its size": """n (float[b, s, 6] x) => (float[b, s, 12] y) {
        shape = Shape(x)  zeros = ConstantOfShape(shape)  y = Concat<axis = 2>(x, zeros) }""",
    "mean by its length": """n (float[b, s, 6] x) => (float[b, 6] y) {
        axes = Constant<value = int64[1] {1}>()  total = ReduceSum<keepdims = 0>(x, axes)
        length = Shape<start = 1, end = 2>(x)  real = Cast<to = 1>(length)  y = Div(total, real) }""",
    "tile": """n (float[b, s, 6] x) => (float[b, t, 6] y) {
        k = Constant<value = int64[3] {1, 2, 1}>()  y = Tile(x, k) }""",
    "where of a shape": """n (float[b, s, 6] x) => (float[b, s, 6] y) {
        shape = Shape(x)  minus = Constant<value = int64[3] {-1, -1, 6}>()  any = Constant<value = int64 {-1}>()
        open = Equal(minus, any)  wanted = Where(open, shape, minus)
        one = Constant<value = float[1, 1, 1] {2}>()  wide = Expand(one, wanted)  y = Mul(x, wide) }""",
}


@pytest.mark.parametrize("name", CHAINS)
def test_arithmetic_of_shapes_leaves_sizes_free(name: str) -> None:
    proto = parse(CHAINS[name])
    model, session = from_onnx(proto.SerializeToString()), runtime(proto)
    assert model.inputs == {"x": ((None, None, 6), "float32")}
    for shape in ((2, 5, 6), (1, 8, 6), (3, 3, 6)):
        assert_agrees(model, session, {"x": noise(*shape)})


INDEXING = {
    "GatherElements": """n (float[b, s, 6] x, int64[b, s, 2] i) => (float[b, s, 2] y) {
        y = GatherElements<axis = 2>(x, i) }""",
    "GatherElements backwards": """n (float[b, s, 6] x, int64[b, s, 6] i) => (float[b, s, 6] y) {
        two = Constant<value = int64 {2}>() n = Sub(i, two) y = GatherElements<axis = 1>(x, n) }""",
    "GatherND": """n (float[b, s, 6] x, int64[k, 2, 2] i) => (float[k, 2, 6] y) { y = GatherND(x, i) }""",
    "ScatterElements": """n (float[b, s, 6] x, int64[b, s, 2] i) => (float[b, s, 6] y) {
        u = Constant<value = float[1] {3}>() shape = Shape(i) w = Expand(u, shape)
        y = ScatterElements<axis = 2, reduction = "add">(x, i, w) }""",
    "ScatterND": """n (float[b, s, 6] x, int64[b, 1] i) => (float[b, s, 6] y) {
        y = ScatterND<reduction = "add">(x, i, x) }""",
    "OneHot": """n (float[b, s, 6] x, int64[b, s] i) => (float[b, s, 6] y) {
        d = Constant<value = int64 {6}>() v = Constant<value = float[2] {0, 2}>()
        o = OneHot(i, d, v) y = Add(x, o) }""",
    "Gather of the last": """n (float[b, s, 6] x, int64[b, s] i) => (float[b, s, 6] y) {
        last = Constant<value = int64[2] {-1, 0}>() g = Gather<axis = 1>(x, last)
        axes = Constant<value = int64[1] {1}>() total = ReduceSum(g, axes) y = Add(x, total) }""",
}


@pytest.mark.parametrize("name", INDEXING)
def test_indexing_of_axes_of_any_size(name: str) -> None:
    proto = parse(INDEXING[name], 18)
    model, session = from_onnx(proto.SerializeToString()), runtime(proto)
    for shape in ((2, 5, 6), (3, 9, 6)):
        tail = {
            "GatherND": (4, 2, 2),
            "OneHot": shape[:2],
            "Gather of the last": shape[:2],
            "ScatterND": (shape[0], 1),
        }.get(name)
        tail = tail or ((*shape[:2], 6 if "backwards" in name else 2))
        ids = np.random.default_rng(0).integers(0, 2, tail)
        assert_agrees(model, session, {"x": noise(*shape), **({"i": ids} if "i" in model.inputs else {})})


RESIZES = [
    ('mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"', "1.0, 1.0, 2.0, 2.0"),
    ('mode = "nearest"', "1.0, 1.0, 3.0, 2.0"),
    ('mode = "nearest", nearest_mode = "ceil"', "1.0, 1.0, 0.5, 1.5"),
    ('mode = "linear"', "1.0, 1.0, 2.0, 0.5"),
    ('mode = "linear", coordinate_transformation_mode = "asymmetric"', "1.0, 1.0, 2.0, 1.5"),
    ('mode = "linear", coordinate_transformation_mode = "align_corners"', "1.0, 1.0, 2.0, 3.0"),
    ('mode = "cubic", cubic_coeff_a = -0.5', "1.0, 1.0, 2.0, 2.0"),
    ('mode = "linear", antialias = 1', "1.0, 1.0, 0.5, 0.6"),
]


@pytest.mark.parametrize(("attrs", "scales"), RESIZES)
def test_resizing_of_images_of_any_size(attrs: str, scales: str) -> None:
    text = f"""n (float[b, 2, h, w] x) => (float[b, 2, u, v] y) {{
        none = Constant<value = float[0] {{}}>()  scales = Constant<value = float[4] {{{scales}}}>()
        y = Resize<{attrs}>(x, none, scales) }}"""
    proto = parse(text, 18)
    model, session = from_onnx(proto.SerializeToString()), runtime(proto)
    for shape in ((1, 2, 6, 8), (2, 2, 10, 10)):
        assert_agrees(model, session, {"x": noise(*shape)}, 1e-4)


ADD = "n (float[a, c] x, float[d, c] y) => (float[e, c] z) { z = Concat<axis = 0>(x, y) }"


def test_free_axes_keep_their_names_and_unnamed_ones_are_their_own() -> None:
    model = imported('n (float[batch, 3, "p2o.Dim.1", ?] x) => (float[b, 3, h, w] y) { y = Relu(x) }')
    assert model.graph.inputs["x"].shape == ("batch", 3, "p2o_Dim_1", "x_3")
    assert imported(ADD).graph.inputs["y"].shape == ("d", "c")


def test_axes_that_must_be_equal_become_one() -> None:
    text = "n (float[a, c] x, float[d, e] y) => (float[f, c] z) { z = Concat<axis = 0>(x, y) }"
    model = imported(text)
    assert model.graph.inputs["y"].shape == ("d", "c")
    assert model(noise(2, 5), noise(3, 5)).shape == (5, 5)


def test_shapes_fix_and_name_axes() -> None:
    model = imported(ADD, shapes={"x": [2, "k"], "y": ["n", "k"]})
    assert model.graph.inputs["x"].shape == (2, "k") and model.graph.inputs["y"].shape == ("n", "k")


def test_a_network_made_for_one_size_has_that_size() -> None:
    text = """n (float[b, s, 6] x) => (float[b, 42] y) { k = Constant<value = int64[2] {-1, 42}>()
        y = Reshape(x, k)  }"""
    exported = text.replace(
        "y = Reshape(x, k)",
        "c = Constant<value = float[7, 6] {" + ", ".join(["1"] * 42) + "}>() z = Add(x, c) y = Reshape(z, k)",
    )
    assert imported(exported).inputs == {"x": ((None, 7, 6), "float32")}


# ---- control flow

BRANCH = """n (float[b, 4] x, bool flag) => (float[b, k] y) {
    y = If(flag) <then_branch = t () => (float[b, k] p) { p = Relu(x) },
                  else_branch = e () => (float[b, k] q) { q = %s }> }"""


def test_branches_of_one_shape_are_chosen_at_run_time() -> None:
    proto = parse(BRANCH % "Neg(x)")
    model, session = from_onnx(proto.SerializeToString()), runtime(proto)
    for flag in (True, False):
        assert_agrees(model, session, {"x": noise(3, 4), "flag": np.array(flag)})


def test_a_value_given_for_an_input_decides_a_branch() -> None:
    text = BRANCH % "Concat<axis = 1>(x, x)"
    with pytest.raises(UnsupportedOpError, match=r"depends on the input 'flag'; give its value: values=\{'flag': "):
        imported(text)
    for flag in (True, False):
        model, session = imported(text, values={"flag": flag}), runtime(parse(text))
        assert list(model.inputs) == ["x"]
        assert_agrees(model, session, {"x": noise(3, 4)}, flag=np.array(flag))


def test_a_branch_on_a_known_shape_is_folded() -> None:
    text = """n (float[b, 4, 1] x) => (float[b, k] y) { size = Shape<start = 2, end = 3>(x)
        one = Constant<value = int64[1] {1}>() flag = Equal(size, one) two = Constant<value = int64[1] {2}>()
        y = If(flag) <then_branch = t () => (float[b, k] p) { p = Squeeze(x, two) },
                      else_branch = e () => (float[b, k, m] q) { q = Identity(x) }> }"""
    assert imported(text)(noise(3, 4, 1)).shape == (3, 4)


def test_loops_over_a_known_count_are_unrolled() -> None:
    text = """n (float[b, 4] x) => (float[b, 4] y, float[3, b, 4] all) { n = Constant<value = int64 {3}>()
        go = Constant<value = bool {1}>()
        y, all = Loop(n, go, x) <body = l (int64 i, bool c, float[b, 4] s) => (bool d, float[b, 4] t, float[b, 4] u) {
            d = Identity(c) r = Cast<to = 1>(i) u = Add(s, r) t = Mul(u, s) }> }"""
    proto = parse(text)
    assert_agrees(from_onnx(proto.SerializeToString()), runtime(proto), {"x": noise(2, 4)})


def test_loops_whose_end_depends_on_data_are_refused() -> None:
    text = """n (float[b, 4] x, int64 n) => (float[b, 4] y) { go = Constant<value = bool {1}>()
        y = Loop(n, go, x) <body = l (int64 i, bool c, float[b, 4] s) => (bool d, float[b, 4] t) {
            d = Identity(c) t = Neg(s) }> }"""
    with pytest.raises(UnsupportedOpError, match=r"known number of rounds; it depends on the input 'n'"):
        imported(text)
    assert imported(text, values={"n": 3})(noise(2, 4)).shape == (2, 4)


# ---- recurrent layers


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(op: str, direction: str) -> None:
    n, gates, size = 2 if direction == "bidirectional" else 1, {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 5
    arrays = {"w": noise(n, gates * size, 3), "r": noise(n, gates * size, size), "b": noise(n, 2 * gates * size)}
    attrs: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" else {}
    names = ["y", "h", "c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, ["x", "w", "r", "b"], names, hidden_size=size, direction=direction, **attrs)
    proto = _model([node], {"x": ("t", "k", 3)}, dict.fromkeys(names), arrays)
    assert_agrees(from_onnx(proto.SerializeToString()), runtime(proto), {"x": noise(4, 2, 3)})


def _model(
    nodes: list[Any],
    inputs: dict[str, tuple[Any, ...]],
    outs: dict[str, Any],
    constants: dict[str, np.ndarray],
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outs.items()],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


# ---- numbers of other kinds


def test_half_precision_becomes_float32() -> None:
    weight = noise(4, 3).astype(np.float16)
    nodes = [helper.make_node("Cast", ["x"], ["half"], to=10), helper.make_node("MatMul", ["half", "fc.weight"], ["z"])]
    nodes.append(helper.make_node("Cast", ["z"], ["y"], to=1))
    proto = _model(nodes, {"x": ("b", 4)}, {"y": None}, {"fc.weight": weight})
    model = from_onnx(proto.SerializeToString())
    assert ops(model) == ["linear"] and model.graph.params["fc.weight"].dtype == np.float32
    assert_agrees(model, runtime(proto), {"x": noise(2, 4)}, 2e-3)


def test_quantized_weights_are_dequantized() -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (6, 3, 3, 3)).astype(np.int8)
    scales = np.random.default_rng(1).random(6).astype(np.float32) / 100
    constants = {"conv.weight": codes, "scales": scales, "step": np.float32(0.05), "zero": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "step", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["conv.weight", "scales"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["y"], name="conv"),
    ]
    proto = _model(nodes, {"x": ("b", 3, 8, 8)}, {"y": None}, constants)
    model = from_onnx(proto.SerializeToString())
    weight = model.graph.params["conv.weight"]
    assert isinstance(weight, np.ndarray) and list(model.graph.layers()) == ["conv"]
    np.testing.assert_allclose(weight, codes * scales[:, None, None, None], rtol=1e-6)
    assert_agrees(model, runtime(proto), {"x": noise(2, 3, 8, 8)})


# ---- names and weights


def test_layers_are_called_after_their_weights_or_modules() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "encoder.layer.0.query.weight"], ["a"], name="m0"),
        helper.make_node("MatMul", ["a", "onnx::MatMul_93"], ["b"], name="/encoder/layer.0/key/MatMul"),
        helper.make_node("MatMul", ["b", "stage/dense/kernel:0"], ["c"], name="m2"),
        helper.make_node("MatMul", ["c", "onnx::MatMul_94"], ["y"], name="MatMul_7"),
    ]
    weights = {n.input[1]: noise(4, 4, seed=i) for i, n in enumerate(nodes)}
    model = from_onnx(_model(nodes, {"x": ("b", 4)}, {"y": None}, weights).SerializeToString())
    assert list(model.graph.layers()) == ["encoder.layer.0.query", "encoder.layer.0.key", "stage.dense", "MatMul_7"]


def test_a_table_and_the_same_as_a_matrix_are_stored_once() -> None:
    table = noise(100, 64)
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=7),
        helper.make_node("Gather", ["wte.weight", "ids"], ["h"]),
        helper.make_node("MatMul", ["h", "onnx::MatMul_9"], ["y"], name="/head/MatMul"),
    ]
    constants = {"wte.weight": table, "onnx::MatMul_9": np.ascontiguousarray(table.T)}
    model = from_onnx(_model(nodes, {"x": ("b", "t")}, {"y": None}, constants).SerializeToString())
    assert [n.params for n in model.graph.nodes if n.params] == [{"weight": "wte.weight"}] * 2
    assert list(model.graph.layers()) == ["wte"]


# ---- a rule of one's own


def test_operations_of_another_domain() -> None:
    node = helper.make_node("ScaledTanh", ["x"], ["y"], domain="mine", scale=0.5)
    proto = _model([node], {"x": ("b", 4)}, {"y": None}, {})
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises(UnsupportedOpError, match=r"without a rule: mine::ScaledTanh \(1: y\); a rule is a function"):
        from_onnx(proto.SerializeToString())

    @rule("mine::ScaledTanh")
    def scaled_tanh(b: Any, x: Any) -> Any:
        return b.emit("mul", b.emit("tanh", x), scalar=b.attr("scale", 1.0))

    try:
        assert ops(from_onnx(proto.SerializeToString())) == ["tanh", "mul"]
    finally:
        del RULES["mine::ScaledTanh"]


# ---- what cannot be imported

RELU = "n (float[b, 4] x) => (float[b, 4] y) { y = Relu(x) }"
REFUSED: list[tuple[Any, type[PQNetError], str]] = [
    (parse(RELU, 8), UnsupportedOpError, "expected opset 9 to 23, got 8; onnx.version_converter"),
    (parse(RELU, 24), UnsupportedOpError, "expected opset 9 to 23, got 24; export it with an older opset"),
    (b"", FormatError, "expected a model with a graph and an operator set"),
    (b"not a model", FormatError, "damaged, truncated or of another kind"),
    (
        parse("n (string[b] x) => (string[b] y) { y = Identity(x) }"),
        UnsupportedOpError,
        "input 'x': a tensor of strings",
    ),
    (
        parse("n (complex64[b] x) => (complex64[b] y) { y = Identity(x) }"),
        UnsupportedOpError,
        "real numbers .*, got complex64",
    ),
    (
        parse("n (seq(float[b]) x) => (float y) { y = ConcatFromSequence<axis = 0>(x) }"),
        UnsupportedOpError,
        "'x': expected a tensor, got a sequence",
    ),
    (
        parse("n (float[b] x) => (float[b] y) { s = SequenceConstruct(x) y = ConcatFromSequence<axis = 0>(s) }"),
        UnsupportedOpError,
        "sequences and optional values have no rule",
    ),
    (
        parse("n (float[b] x) => (int64[k, b] y) { y = NonZero(x) }"),
        UnsupportedOpError,
        "node 'y' .NonZero.: the size of its result depends on what is in the input",
    ),
    (
        parse("n (float[b] x, int64[k] s) => (float[c, d] y) { y = Reshape(x, s) }"),
        UnsupportedOpError,
        "a shape that follows from the shapes of the inputs, got one that depends on what is in them",
    ),
    (
        parse("n (float[b, 4] x) => (float[b, 4] y) { z = Det(x) a = Det(x) y = STFT(z, a) }"),
        UnsupportedOpError,
        r"without a rule: Det \(2: z, a\); STFT \(1: y\)",
    ),
    (
        parse("n (float[b, 4] x) => (float[b, 4] y) { y = Relu(z) }"),
        PQNetError,
        "the input of node 'y' .Relu., 'z' is computed by no node before it",
    ),
    (parse("n (float[b, 4] x) => (float[b, 4] z) { y = Relu(x) }"), PQNetError, "output 'z' is computed by no node"),
    (
        parse("n (float[b, 4] x) => (float[b, 4] y) { y = Concat(x, x) }"),
        PQNetError,
        "node 'y' .Concat.: the model is not valid",
    ),
    (
        parse("n (float[b, 4] x) => (float[b, 4] y) { y = Relu(x, x) }"),
        PQNetError,
        "node 'y' .Relu.: the model is not valid",
    ),
    (
        parse("n (float[2, 4] x) => (float[2, 3] y) { k = Constant<value = int64[2] {2, 3}>() y = Reshape(x, k) }"),
        PQNetError,
        "node 'y' .Reshape.: shape: expected one for 8 elements",
    ),
    (
        parse("n (float x) => (float y) { y = RandomNormalLike(x) }"),
        UnsupportedOpError,
        "random numbers have no rule; make them an input",
    ),
    (parse("n (float[2, 3] x, float[3, 2] w) => (float y) { y = Conv(x, w) }"), PQNetError, "node 'y' .Conv."),
]


@pytest.mark.parametrize(("source", "kind", "match"), REFUSED, ids=[m[:40] for *_, m in REFUSED])
def test_what_cannot_be_imported_says_why(source: Any, kind: type[PQNetError], match: str) -> None:
    data = source.SerializeToString() if isinstance(source, onnx.ModelProto) else source
    with pytest.raises(kind, match=match):
        from_onnx(data)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"shapes": {"z": [1, 4]}}, r"shapes: expected names of inputs among \['x', 'y'\], got \['z'\]"),
    ({"shapes": {"x": [1]}}, r"shapes\['x'\]: expected 2 sizes"),
    ({"shapes": {"x": [0, 4]}}, r"shapes\['x'\]: expected sizes of at least 1 or names, got 0"),
    ({"values": {"z": 1}}, r"values: expected names of inputs among \['x', 'y'\], got \['z'\]"),
    ({"values": {"x": "no"}}, r"values\['x'\]: expected numbers, got 'no'"),
    ({"values": {"x": [1.0, 2.0]}}, r"values\['x'\]: expected 2 axes, got shape \(2,\)"),
    ({"values": {"x": [[1.0]], "y": [[1.0]]}}, "expected a network that keeps an input"),
]


@pytest.mark.parametrize(("options", "match"), OPTIONS)
def test_options_that_do_not_fit(options: dict[str, Any], match: str) -> None:
    with pytest.raises(PQNetError, match=match):
        imported(ADD, **options)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PQNetError, match=r"path: expected a readable ONNX file, got .*none\.onnx"):
        from_onnx(tmp_path / "none.onnx")


def test_cut_and_damaged_files_never_crash() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["z"], name="c"), helper.make_node("Relu", ["z"], ["y"])]
    data = _model(nodes, {"x": ("b", 3, 8, 8)}, {"y": None}, {"w": noise(4, 3, 3, 3)}).SerializeToString()
    rng, seen = np.random.default_rng(0), Counter[str]()
    for cut in rng.integers(0, len(data), 60):
        with pytest.raises(PQNetError):
            from_onnx(data[:cut])
    for _ in range(150):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            damaged[at] = rng.integers(0, 256)
        try:
            from_onnx(bytes(damaged))
            seen["fine"] += 1  # a weight changed, say
        except PQNetError:
            seen["refused"] += 1
    assert seen["fine"] and seen["refused"]


# ---- data beside the file


def _external(location: str, **more: str) -> onnx.ModelProto:
    proto = _model([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"x": ("b", 4)}, {"y": None}, {})
    tensor = proto.graph.initializer.add()
    tensor.name, tensor.data_type, tensor.data_location = "w", TensorProto.FLOAT, TensorProto.EXTERNAL
    tensor.dims.extend([4, 3])
    for key, value in {"location": location, **more}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return proto


def test_data_beside_the_file(tmp_path: Path) -> None:
    weight = noise(4, 3)
    (tmp_path / "data.bin").write_bytes(b"\0" * 16 + weight.tobytes())
    path = tmp_path / "net.onnx"
    onnx.save(_external("data.bin", offset="16", length="48"), path)
    x = noise(2, 4)
    np.testing.assert_allclose(from_onnx(path)(x), x @ weight, rtol=1e-5, atol=1e-6)
    with pytest.raises(FormatError, match="pass the path of the model, not its bytes"):
        from_onnx(path.read_bytes())


@pytest.mark.parametrize(
    ("location", "more", "match"),
    [
        ("missing.bin", {}, "its data is missing: cannot read 'missing.bin'"),
        ("data.bin", {"offset": "1"}, "expected 12 elements in 'data.bin' from byte 1, got 48 bytes"),
        ("data.bin", {"offset": "-8"}, "expected 12 elements"),
        ("data.bin", {"length": "12"}, "expected 12 elements"),
        ("../secret.bin", {}, "in a file in the folder of the model, got '../secret.bin'"),
        ("{outside}", {}, "in a file in the folder of the model"),
        ("link.bin", {}, "in a file in the folder of the model, got 'link.bin'"),
        ("", {}, "in a file in the folder of the model, got ''"),
        (".", {}, "in a file in the folder of the model"),
    ],
)
def test_data_that_is_missing_or_elsewhere(tmp_path: Path, location: str, more: dict[str, str], match: str) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret.bin"
    folder.mkdir()
    secret.write_bytes(noise(4, 3).tobytes())
    (folder / "data.bin").write_bytes(noise(4, 3).tobytes())
    os.symlink(secret, folder / "link.bin")
    onnx.save(_external(location.format(outside=secret), **more), folder / "net.onnx")
    with pytest.raises(FormatError, match=match):
        from_onnx(folder / "net.onnx")


@pytest.mark.parametrize("name", [b"weight", b"result", b"left", b"Relu"])
def test_names_that_are_no_text_are_refused(name: bytes) -> None:
    """Protobuf gives bytes for them."""
    model = parse(
        "g (float[2, 3] left) => (float[2, 3] result) <float weight = {2.0}> { a = Mul(left, weight) result = Relu(a) }"
    )
    good = model.SerializeToString()
    assert from_onnx(good).run({"left": np.ones((2, 3), np.float32)})["result"].shape == (2, 3)
    with pytest.raises(FormatError, match="ONNX file: .*: expected UTF-8, got b'"):
        from_onnx(good.replace(name, b"\xff" + name[1:]))
