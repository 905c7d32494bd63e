"""ONNX networks that choose boxes, against ONNX Runtime: as many rows as there may be, and how many there are."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxfiles import runtime

from pqnet import UnsupportedOpError
from pqnet.graph.indices import index_limits
from pqnet_converters import from_onnx

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def model_of(text):
    return onnx.parser.parse_model(HEAD + text)


def compare(text, feed, rows):
    """Assert that an imported network gives ONNX Runtime's outputs, those named in ``rows`` padded with zeros."""
    proto = model_of(text)
    names = [value.name for value in proto.graph.output]
    want = dict(zip(names, runtime(proto).run(names, feed), strict=True))
    got = from_onnx(proto.SerializeToString()).run(feed)
    assert list(got) == [*names, "count"]
    count = int(got["count"])
    for name in names:
        np.testing.assert_allclose(got[name][:count] if name in rows else got[name], want[name], rtol=1e-5, atol=1e-5)
    return got, count


NMS = """
    net (float[{b}, {n}, 4] boxes, float[{b}, {c}, {n}] scores) => (int64[rows, 3] chosen)
    <int64[1] most = {{{most}}}, float[1] iou = {{{iou}}}, float[1] least = {{{least}}}>
    {{ chosen = NonMaxSuppression <center_point_box = {center}> (boxes, scores, most, iou, least) }}
"""


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 14),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_boxes_are_chosen_as_onnx_runtime_does(b, c, n, most, iou, center, seed):
    rng = np.random.default_rng(seed)
    # Corners in any order, so some are upside down; as center and size, none is empty.
    boxes = (rng.integers(1, 12, (b, n, 4)) / 2).astype(np.float32)
    scores = rng.permuted(np.linspace(0, 1, b * c * n, dtype=np.float32)).reshape(b, c, n)
    text = NMS.format(b=b, c=c, n=n, most=most, iou=iou, least=0.25, center=int(center))
    got, count = compare(text, {"boxes": boxes, "scores": scores}, {"chosen"})
    assert got["chosen"].shape == (b * c * min(most, n), 3) and not got["chosen"][count:].any()


YOLO = """
    net (float[batch, 3, height, width] images) => (float[rows, 4] boxes, float[rows] scores, int64[rows] classes,
                                                     int64[rows] images_of)
    <int64[1] most = {20}, float[1] iou = {0.45}, float[1] least = {0.5}, int64[3] flat = {0, 7, -1},
     int64[1] first = {0}, int64[1] fourth = {4}, int64[1] last = {7}, int64[1] channels = {1}, int64 two = {2},
     int64 one = {1}, int64 zero = {0}, int64[2] from_box = {0, 2}, int64[3] from_score = {0, 1, 2},
     float size = {24.0}, int64[1] second_axis = {1}, int64[2] corner = {0, 2}>
    {
      heads = Conv <kernel_shape = [4, 4], strides = [4, 4]> (images, weight, bias)
      anchors = Reshape (heads, flat)
      rows_ = Transpose <perm = [0, 2, 1]> (anchors)
      offsets = Slice (rows_, first, fourth, two_)
      logits = Slice (anchors, fourth, last, channels)
      probability = Sigmoid (logits)
      sizes_ = Mul (offsets, size)
      wide = Abs (sizes_)
      chosen = NonMaxSuppression <center_point_box = 1> (wide, probability, most, iou, least)
      images_of = Gather <axis = 1> (chosen, zero)
      classes = Gather <axis = 1> (chosen, one)
      box_places = Gather <axis = 1> (chosen, from_box)
      boxes = GatherND (wide, box_places)
      scores = GatherND (probability, chosen)
    }
"""


def yolo():
    """Return a small detector of YOLO's form: one convolution, boxes by center, three classes, its own NMS."""
    rng = np.random.default_rng(3)
    text = YOLO.replace("two_", "channels2")
    proto = model_of(
        text.replace("int64 two = {2}", "int64[1] channels2 = {2}").replace(", int64[2] corner = {0, 2}", "")
    )
    for name, array in (
        ("weight", rng.standard_normal((7, 3, 4, 4)) / 4),
        ("bias", np.float32([0, 0, 0, 0, -1, -1, -1])),
    ):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return proto


def test_a_detector_with_its_own_nms_gives_what_onnx_runtime_gives_at_other_sizes():
    proto = yolo()
    model, session = from_onnx(proto.SerializeToString()), runtime(proto)
    names = [value.name for value in proto.graph.output]
    assert list(model.outputs) == [*names, "count"]
    for shape in ((1, 3, 32, 32), (2, 3, 24, 40), (3, 3, 8, 8)):
        images = np.random.default_rng(shape[0]).standard_normal(shape).astype(np.float32)
        got = model.run({"images": images})
        count = int(got["count"])
        assert count > 4
        for name, want in zip(names, session.run(names, {"images": images}), strict=True):
            np.testing.assert_allclose(got[name][:count], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("after", "kind", "op"),
    [
        ("y = ReduceMax <axes = [0], keepdims = 0> (chosen)", "int64[3]", "max"),
        ("y = Shape (chosen)", "int64[2]", None),
        ("y, places = TopK <axis = 0> (chosen, two)", "int64[2, 3]", "topk"),
        ("y = Slice (chosen, two, three, zero)", "int64[n, 3]", "slice"),
        ("y = Reshape (chosen, flat)", "int64[n]", "reshape"),
    ],
)
def test_what_mixes_the_rows_chosen_is_refused(after, kind, op):
    text = f"""
        net (float[1, 6, 4] boxes, float[1, 1, 6] scores) => ({kind} y)
        <int64[1] most = {{4}}, int64[1] two = {{2}}, int64[1] three = {{3}}, int64[1] zero = {{0}},
         int64[1] flat = {{-1}}>
        {{ chosen = NonMaxSuppression (boxes, scores, most)
           {after} }}
    """
    with pytest.raises(
        UnsupportedOpError, match=rf"\({op}\): expected an operation on each row alone" if op else "the number of rows"
    ):
        from_onnx(model_of(text).SerializeToString())


def test_operations_on_single_elements_leave_rows_as_they_are():
    text = """
        net (float[1, 6, 4] boxes, float[1, 1, 6] scores) => (float[n, 3] y)
        <int64[1] most = {4}>
        { chosen = NonMaxSuppression (boxes, scores, most)
          real = Cast <to = 1> (chosen)
          large = Sin (real)
          y = Softmax <axis = 1> (large) }
    """
    boxes, scores = np.random.default_rng(0).random((1, 6, 4), np.float32), np.linspace(0, 1, 6, dtype=np.float32)
    inputs = {"boxes": boxes, "scores": scores[None, None]}
    compare(text, inputs, ["y"])


def test_no_place_for_boxes_is_refused():
    text = """
        net (float[1, 6, 4] boxes, float[1, 1, 6] scores) => (int64[n, 3] y)
        { y = NonMaxSuppression (boxes, scores) }
    """
    with pytest.raises(UnsupportedOpError, match="max_output_boxes_per_class of at least 1, got 0"):
        from_onnx(model_of(text).SerializeToString())


@pytest.mark.parametrize("where", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_regions_are_sampled_as_onnx_runtime_does(where, ratio):
    rng = np.random.default_rng(ratio)
    text = f"""
        net (float[2, 5, 9, 11] x, float[n, 4] rois, int64[n] images) => (float[n, 5, 3, 2] y)
        {{ y = RoiAlign <output_height = 3, output_width = 2, sampling_ratio = {ratio}, spatial_scale = 0.25,
                         coordinate_transformation_mode = "{where}"> (x, rois, images) }}
    """
    proto = model_of(text)
    model, session = from_onnx(proto.SerializeToString()), runtime(proto)
    assert index_limits(model.graph, model.graph.infer_shapes(model.graph.symbols)) == {"images": 2}
    for n in (1, 6):
        corners = np.sort(rng.random((n, 2, 2)).astype(np.float32) * 50 - 4, 1)
        feed = {
            "x": rng.standard_normal((2, 5, 9, 11)).astype(np.float32),
            "rois": corners.reshape(n, 4),
            "images": rng.integers(0, 2, n),
        }
        np.testing.assert_allclose(model.run(feed)["y"], session.run(["y"], feed)[0], rtol=1e-4, atol=1e-5)
