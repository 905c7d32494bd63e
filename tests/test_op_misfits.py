"""The message of every misfit that an operation's shape rule, or its evaluation, refuses."""

from typing import Any

import numpy as np
import pytest
from test_ops import build, evaluate

from pqnet import PQNetError
from pqnet.graph import Info

F4, F2, F1, F0 = Info((1, 4, 8, 8)), Info((3, 4)), Info((4,)), Info(())
I1, B2 = Info((2,), "int64"), Info((3, 4), "bool")
W = {"weight": Info((6, 4, 3, 3))}
S1, R = Info((2, 5, 12)), {"weight": Info((12, 4))}
OUTPUTS = {"topk": 2, "nms": 2, "heatmap_peaks": 2, "rnn": 2, "gru": 2, "lstm": 3}
BOXES, I3, NMS = Info((1, 3, 4)), Info((3,), "int64"), {"k": 1, "iou_threshold": 0.5}
K = {"kernel": (3, 3), "stride": (1, 1)}

MISFITS: list[tuple[str, list[Info], dict[str, Info], dict[str, Any], str]] = [
    ("conv2d", [F2], W, {}, r"expected 4 axes .*, got \(3, 4\)"),
    ("conv2d", [F4], W, {"stride": (0, 1)}, "stride, dilation and groups of at least 1"),
    ("conv2d", [Info((1, 5, 8, 8))], W, {}, "expected 4 input channels .* got 5"),
    ("conv2d", [F4], W | {"bias": F1}, {}, r"bias: expected float32 of shape \(6,\)"),
    ("conv2d", [Info((1, 4, 8, 8), "int64")], W, {}, "input: expected float32, got int64"),
    ("conv2d", [F4], {"weight": Info((6, 4, 3, 3), "int64")}, {}, "weight: expected float32, got int64"),
    ("conv2d", [F4], W, {"padding": (0, -1, 0, 0)}, "expected non-negative padding"),
    ("conv2d", [F4], W, {"dilation": (4, 4)}, r"the kernel \(3, 3\) is larger than the padded input"),
    ("conv_transpose2d", [F4], W, {"padding": (5, 5, 5, 5)}, "leaves no output"),
    ("conv_transpose2d", [F4], W, {"output_padding": (-1, 0)}, "non-negative padding and output_padding"),
    (
        "conv1d",
        [F4],
        {"weight": Info((6, 4, 3))},
        {},
        r"expected 3 axes \(batch, channels, length\), got \(1, 4, 8, 8\)",
    ),
    ("conv3d", [F4], W, {}, r"expected 5 axes \(batch, channels, depth, height, width\)"),
    ("lstm", [S1], {"weight": Info((8, 4))}, {}, r"weight: expected shape \(4 \* state, state\), got \(8, 4\)"),
    ("rnn", [S1], {"weight": Info((8, 4))}, {}, r"weight: expected shape \(state, state\), got \(8, 4\)"),
    ("gru", [F2], R, {}, r"products of the inputs of shape \(batch, steps, 12\), got \(3, 4\)"),
    ("gru", [S1, F2], R, {}, r"initial state: expected float32 of shape \(2, 4\), got float32 of shape \(3, 4\)"),
    ("gru", [S1], R | {"bias": F1}, {}, r"bias: expected float32 of shape \(12,\)"),
    ("gru", [Info((2, 5, 12), "int64")], R, {}, "input: expected float32, got int64"),
    (
        "lstm",
        [Info((2, 5, 16)), Info((2, 4))],
        {"weight": Info((16, 4))},
        {},
        "expected no initial state or 2, got 1",
    ),
    ("linear", [F2], W, {}, "weight: expected float32 of 2 axes"),
    ("linear", [B2], {"weight": F2}, {}, "input: expected float32, got bool; put a cast before it"),
    ("linear", [Info((3, 5))], {"weight": F2}, {}, r"whose last axis has size 4, got shape \(3, 5\)"),
    ("linear", [F0], {"weight": F2}, {}, r"whose last axis has size 4, got shape \(\)"),
    (
        "linear",
        [F2],
        {"weight": F2, "bias": F1},
        {},
        r"bias: expected float32 of shape \(3,\), got float32 of shape",
    ),
    ("matmul", [F2, F0], {}, {}, "at least 1 axis"),
    ("matmul", [F2, F2], {}, {}, r"inner sizes of shapes \(3, 4\) and \(3, 4\) differ"),
    ("matmul", [Info((2, 3, 4)), Info((3, 4, 5))], {}, {}, r"shapes \(2,\), \(3,\) do not broadcast"),
    ("matmul", [F2, B2], {}, {}, "input: expected float32, got bool"),
    ("embedding", [F1], {"weight": F2}, {}, "ids: expected int64, got float32"),
    ("embedding", [I1], {"weight": Info((3, 4), "int64")}, {}, "weight: expected float32 of 2 axes, got int64"),
    ("relu", [I1], {}, {}, "input: expected float32, got int64"),
    ("clamp", [F1], {}, {}, "expected min or max, got neither"),
    ("softplus", [F1], {}, {"beta": np.inf}, "beta: expected a finite number, got inf"),
    (
        "prelu",
        [F4],
        {"weight": Info((3,))},
        {},
        r"weight: expected float32 of shape \(4,\), got float32 of shape \(3,\)",
    ),
    ("prelu", [F1], {"weight": Info((4,))}, {}, r"weight: expected float32 of shape \(1,\)"),
    ("softmax", [F2], {}, {"axis": 2}, r"axes: expected distinct numbers in \[0, 2\), got \(2,\)"),
    ("log_softmax", [F2], {}, {"axis": -1}, r"axes: expected distinct numbers in \[0, 2\), got \(-1,\)"),
    ("add", [F2], {}, {}, "two inputs, or one input and a scalar, got 1 and scalar None"),
    ("add", [F2, F2], {}, {"scalar": 1}, "two inputs, or one input and a scalar, got 2 and scalar 1"),
    ("sub", [F2, F2], {}, {"reverse": True}, "reverse: expected only together with a scalar"),
    ("add", [F2, Info((3,))], {}, {}, r"shapes \(3, 4\), \(3,\) do not broadcast"),
    ("logical_and", [F2, Info((3,))], {}, {}, "do not broadcast"),
    ("exp", [I1], {}, {}, "input: expected float32, got int64"),
    ("neg", [B2], {}, {}, "input: expected float32 or int64 or .*uint8, got bool"),
    ("where", [F2, F2, F2], {}, {}, "condition: expected bool, got float32"),
    (
        "cast",
        [F2],
        {},
        {"dtype": "float64"},
        r"cast.dtype: expected \('float32', 'int64', .*'bool'\), got str 'float64'",
    ),
    (
        "full",
        [],
        {},
        {"shape": (2,), "value": 0.5, "dtype": "int64"},
        "value: expected a whole number for int64, from .*, got 0.5",
    ),
    ("full", [], {}, {"shape": (2, -1), "value": 0}, r"expected no negative size, got shape \(2, -1\)"),
    ("full", [], {}, {"shape": (2,), "value": 256, "dtype": "uint8"}, "for uint8, from 0 to 255, got 256"),
    ("full", [], {}, {"shape": (2,), "value": 2**63}, "full.value: expected number, got int"),
    ("bitwise_and", [F2, Info((3, 4), "int32")], {}, {}, "expected integers, got float32, int32 and scalar None"),
    ("bitwise_or", [B2, B2], {}, {}, "expected integers, got bool, bool and scalar None; logical_"),
    ("shift_left", [I1], {}, {"scalar": 0.5}, "expected integers, got int64 and scalar 0.5"),
    ("cumsum", [F2], {}, {"axis": 2}, r"axes: expected distinct numbers in \[0, 2\)"),
    ("arange", [], {}, {"end": 3, "step": 0}, "step: expected one that leads from 0 to 3, got 0"),
    ("arange", [], {}, {"end": -3}, "step: expected one that leads from 0 to -3, got 1"),
    ("batch_norm", [F1], {}, {}, "input of 2 to 5 axes"),
    ("batch_norm", [F4], {"var": Info((3,))}, {}, r"var: expected float32 of shape \(4,\)"),
    ("layer_norm", [F2], {}, {"axes": 3}, "axes: expected 1 to 2 trailing axes, got 3"),
    ("layer_norm", [F2], {"bias": Info((3,))}, {}, r"bias: expected float32 of shape \(4,\)"),
    ("layer_norm", [F2], {"weight": Info((4,), "int64")}, {}, "weight: expected float32 of .* got int64"),
    ("group_norm", [F1], {}, {"groups": 1}, "at least 2 axes"),
    ("group_norm", [F4], {}, {"groups": 3}, "groups: expected a divisor of the 4 channels, got 3"),
    ("max_pool2d", [F2], {}, K, "expected an input of 4 axes"),
    ("max_pool2d", [Info((1, 4, 0, 3))], {}, K, "with pixels"),
    ("max_pool2d", [F4], {}, K | {"dilation": (0, 1)}, "kernel, stride and dilation of at least 1"),
    ("avg_pool2d", [F4], {}, K | {"padding": (0, 0, 0, 3)}, "from 0 to less than the kernel's extent"),
    (
        "avg_pool2d",
        [F4],
        {},
        {"kernel": (9, 1), "stride": (1, 1)},
        r"the kernel \(9, 1\) is larger than the padded",
    ),
    ("avg_pool2d", [F4], {}, K | {"divisor": 0}, "divisor: expected another number than 0"),
    ("adaptive_avg_pool2d", [F4], {}, {"size": (0, 1)}, "size: expected at least 1"),
    ("mean", [I1], {}, {"axes": (0,)}, "input: expected float32, got int64"),
    ("sum", [F2], {}, {"axes": (0, 0)}, r"distinct numbers in \[0, 2\), got \(0, 0\)"),
    ("sum", [F2], {}, {"axes": ()}, "axes: expected at least one, got none"),
    ("max", [Info((0, 3))], {}, {"axes": (0,)}, r"with elements along axes \(0,\)"),
    ("interpolate", [F2], {}, {"size": (1, 1)}, "expected an input of 4 axes"),
    ("interpolate", [F4], {}, {"size": (0, 1)}, "size: expected at least 1"),
    (
        "interpolate",
        [F4],
        {},
        {"size": (2, 2), "align_corners": True},
        "align_corners: expected only with mode 'bilinear'",
    ),
    ("interpolate", [F4], {}, {"size": (2, 2), "antialias": True}, "antialias: expected only with mode 'bilinear'"),
    *(
        ("interpolate", [F4], {}, {"size": (8, 9), "scale_width": scale}, "scale_width: .* makes 9 pixels of 8, got")
        for scale in (1.0, 1.26, 0.0, -1.2, 1e-300, np.inf, np.nan)
    ),
    (
        "interpolate",
        [F4],
        {},
        {"size": (8, 8), "mode": "bicubic", "align_corners": True, "scale_height": 1.0},
        "scale_height: expected none together with align_corners",
    ),
    ("topk", [F2], {}, {"axis": 1, "k": 5}, "k: expected 0 to 4, the elements along axis 1, got 5"),
    ("topk", [F2], {}, {"axis": 1, "k": -1}, "k: expected 0 to 4"),
    ("topk", [F2], {}, {"axis": 2, "k": 1}, "axes: expected distinct"),
    ("topk", [B2], {}, {"axis": 1, "k": 1}, "input: expected float32 .*, got bool"),
    ("reshape", [F2], {}, {"shape": (5,)}, r"shape: expected one for 12 elements \(input \(3, 4\)\), got \(5,\)"),
    ("reshape", [F2], {}, {"shape": (5, -1)}, "shape: expected one for 12 elements"),
    ("reshape", [Info((0, 3))], {}, {"shape": (0, -1)}, "shape: expected one for 0 elements"),
    ("reshape", [F2], {}, {"shape": (-1, -1)}, "at most one is -1"),
    ("reshape", [F2], {}, {"shape": (-2, 6)}, "at most one is -1"),
    ("permute", [F2], {}, {"axes": (0, 0)}, r"axes: expected a permutation of the 2 axes of \(3, 4\)"),
    ("slice", [F2], {}, {"axis": 0, "step": 0}, "step: expected another number than 0"),
    ("slice", [F2], {}, {"axis": 2}, "axes: expected distinct"),
    ("concat", [F2, Info((3, 5))], {}, {"axis": 0}, "shapes that differ in axis 0 only"),
    ("concat", [F2, F4], {}, {"axis": 1}, "shapes that differ in axis 1 only"),
    ("concat", [F2, B2], {}, {"axis": 0}, "input: expected float32, got bool"),
    ("split", [F2], {}, {"axis": 1, "sizes": (1, 2)}, "sizes: expected sizes that add up to 4"),
    ("split", [F2], {}, {"axis": 1, "sizes": (5, -1)}, "sizes: expected sizes that add up to 4"),
    ("expand", [F2], {}, {"shape": (4,)}, r"shape: expected one to which \(3, 4\) broadcasts, got \(4,\)"),
    ("expand", [F2], {}, {"shape": (2, 4)}, "do not broadcast"),
    ("expand", [F2], {}, {"shape": (3, -1)}, "shape: expected one to which"),
    ("pad", [F2], {}, {"padding": (1, 1)}, "padding: expected 2 numbers for each axis"),
    ("pad", [F2], {}, {"padding": (-2, -2, 0, 0)}, "crop no more than the input"),
    ("pad", [F2], {}, {"padding": (-4, 4, 0, 0)}, "crop no more than the input"),
    ("pad", [F2], {}, {"padding": (3, 0, 0, 0), "mode": "reflect"}, "smaller than its axis"),
    ("pad", [F2], {}, {"padding": (-1, 0, 0, 0), "mode": "replicate"}, "none negative"),
    ("pad", [Info((0, 2))], {}, {"padding": (1, 0, 0, 0), "mode": "replicate"}, "on axes that have elements"),
    ("pad", [B2], {}, {"padding": (1, 0, 0, 0), "mode": "replicate"}, "input: expected float32, got bool"),
    ("pad", [I1], {}, {"padding": (1, 0), "value": 1e30}, "value: expected a whole number for int64"),
    ("pad", [I1], {}, {"padding": (1, 0), "value": 0.5}, "value: expected a whole number for int64"),
    ("index_select", [F2, F1], {}, {"axis": 0}, "ids: expected int64, got float32"),
    ("index_select", [F2, Info((1, 2), "int64")], {}, {"axis": 0}, "ids: expected 1 axis"),
    ("scatter", [F2, F2, F2], {}, {"axis": 0}, "ids: expected int64, got float32"),
    ("scatter", [F2, Info((2, 3), "int64"), Info((2, 3), "int64")], {}, {"axis": 0}, "updates: expected float32"),
    ("scatter", [F2, Info((4, 4), "int64"), Info((4, 4))], {}, {"axis": 1}, "ids: expected no more than"),
    ("scatter", [F2, Info((1,), "int64"), F1], {}, {"axis": 0}, "ids: expected one for each update"),
    ("nms", [F2, F1], {}, NMS, r"boxes: expected 3 axes, 4 numbers a box, got shape \(3, 4\)"),
    ("nms", [Info((1, 3, 5)), F2], {}, NMS, "boxes: expected 3 axes, 4 numbers a box"),
    ("nms", [BOXES, F2], {}, NMS, r"scores: expected one for each box, of shape \(1, 3\), got \(3, 4\)"),
    ("nms", [BOXES, Info((1, 3)), Info((1, 3))], {}, NMS, "classes: expected int64, got float32"),
    ("nms", [BOXES, Info((1, 3))], {}, NMS | {"k": 4}, "k: expected 0 to 3, the number of boxes, got 4"),
    ("roi_align", [F2, Info((2,), "int64"), F4], {}, {"size": (1, 1)}, "images: expected one for each of the 3 rois"),
    ("roi_align", [F2, Info((3,)), F4], {}, {"size": (1, 1)}, "images: expected int64, got float32"),
    ("roi_align", [F2, I3, F2], {}, {"size": (1, 1)}, "features: expected maps of 4 axes"),
    ("roi_align", [F2, I3, F4, Info((1, 5, 8, 8))], {}, {"size": (1, 1)}, "pixels and equal channels, got"),
    ("roi_align", [F2, I3, F4], {}, {"size": (0, 1)}, "size: expected at least 1"),
    ("roi_align", [F2, I3, F4], {}, {"size": (1, 1), "sampling_ratio": -1}, "sampling_ratio at least 0"),
    ("paste_masks", [Info((3, 4, 5)), F2], {}, {"size": (1, 1)}, "masks: expected square ones for 3 boxes, 3 axes"),
    ("paste_masks", [Info((2, 4, 4)), F2], {}, {"size": (1, 1)}, "masks: expected square ones for 3 boxes"),
    ("paste_masks", [Info((3, 4, 4)), F2], {}, {"size": (1, 0)}, "size: expected at least 1"),
    ("heatmap_peaks", [Info((3, 4, 4)), F2], {}, {}, "heatmaps: expected square ones for 3 boxes, 4 axes"),
    ("attention", [F1, F2, F2], {}, {}, r"expected queries \(\.\.\., L, E\)"),
    ("attention", [F2, F2, B2], {}, {}, "input: expected float32, got bool"),
    ("attention", [F2, F2, F2, Info((2, 3, 3))], {}, {}, r"mask: expected a shape that broadcasts to \(3, 3\)"),
    ("attention", [F2, F2, F2, Info((3, 3), "int64")], {}, {}, "mask: expected bool or float32, got int64"),
    ("attention", [F2, F2, F2, Info((3, 3))], {}, {"causal": True}, "causal: expected False together with a mask"),
]


@pytest.mark.parametrize(
    ("op", "inputs", "params", "attrs", "match"), MISFITS, ids=[f"{m[0]}-{m[-1]}" for m in MISFITS]
)
def test_misfits_are_refused(
    op: str, inputs: list[Info], params: dict[str, Info], attrs: dict[str, Any], match: str
) -> None:
    weights = {role: np.zeros(info.shape, info.dtype) for role, info in params.items()}
    n_outputs = len(attrs["sizes"]) if op == "split" else OUTPUTS.get(op, 1)
    with pytest.raises(PQNetError, match=match):
        build(op, [np.zeros(info.shape, info.dtype) for info in inputs], weights, n_outputs, **attrs)


@pytest.mark.parametrize("bad", [3, -1])
def test_ids_out_of_range_are_refused(bad: int) -> None:
    ids, x = np.array([0, bad]), np.ones((3, 4), np.float32)
    for graph, inputs in (
        (build("embedding", [ids], {"weight": x}), [ids]),
        (build("index_select", [x, ids], {}, axis=0), [x, ids]),
        (build("scatter", [x, ids[None], x[:1, :2]], {}, axis=0), [x, ids[None], x[:1, :2]]),
    ):
        with pytest.raises(PQNetError, match=r"ids: expected entries in \[0, 3\)"):
            evaluate(graph, inputs)
