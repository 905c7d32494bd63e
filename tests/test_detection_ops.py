"""Operations of detectors: suppression of boxes, regions of maps, pasted masks, peaks of heatmaps."""

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import GuardedSpace, untouched

from pqnet import PQNetError
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.runtime.builder import HostStep
from pqnet.runtime.execute import run_graph, values_to_free
from pqnet.runtime.memory import Store, Workspace
from pqnet.runtime.program import Program
from pqnet_converters import to_torch


def run(op, inputs, n_outputs=1, forms=None, **attrs):
    """Return what NumPy and kernels, on 1 and 3 threads, give for a node, whose inputs come in other storage orders."""
    b = GraphBuilder({name: ValueInfo(a.shape, a.dtype.name) for name, a in inputs.items()})
    values = []
    for name, order in zip(inputs, forms or [None] * len(inputs), strict=True):
        back = None if order is None else b.add("permute", name, axes=order)
        values.append(name if back is None else b.add("permute", back, axes=np.argsort(order).tolist()))
    outputs = b.add_many(op, values, n_outputs, **attrs)
    graph = b.build({f"y{i}": value for i, value in enumerate(outputs)})
    want = run_graph(graph, values_to_free(graph), inputs)
    program, space = Program(graph, {}, Store()), GuardedSpace()
    got = program.run(inputs, space, 1)
    assert untouched(program, space.arena)
    again = program.run(inputs, Workspace(), 3)
    assert not [s for s in program.segments if isinstance(s, HostStep)], "a node was left to NumPy"
    for name in got:
        assert got[name].dtype == want[name].dtype and got[name].shape == want[name].shape
        np.testing.assert_array_equal(again[name], got[name])
    torch_module = to_torch(graph)
    by_torch = torch_module(*(torch.from_numpy(a.copy()) for a in inputs.values()))
    by_torch = by_torch if isinstance(by_torch, tuple) else (by_torch,)
    return list(want.values()), list(got.values()), [t.detach().numpy() for t in by_torch]


def draw_boxes(rng, *shape, size=20.0):
    """Return boxes with many equal coordinates, some empty or upside down."""
    corners = np.round(rng.random((*shape, 2, 2)) * size * 2) / 2
    boxes = np.where(rng.random((*shape, 1, 1)) < 0.9, np.sort(corners, -2), corners)
    return boxes.reshape(*shape, 4).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_nms_is_that_of_the_definition(batch, n, threshold, in_classes, seed):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.standard_normal((batch, n)), 1).astype(np.float32)
    scores[rng.random((batch, n)) < 0.2] = -np.inf
    inputs = {"boxes": draw_boxes(rng, batch, n), "scores": scores}
    classes = rng.integers(0, 3 if in_classes else 1, (batch, n))
    if in_classes:
        inputs["classes"] = classes
    k = int(rng.integers(1, n + 1))
    forms = [(0, 2, 1) if seed % 2 else None, (1, 0), (1, 0)][: len(inputs)]
    for indices, counts in run("nms", inputs, 2, forms, k=k, iou_threshold=threshold):
        for image in range(batch):
            kept = naive.nms(inputs["boxes"][image], scores[image], classes[image], threshold, k)
            assert indices[image].tolist() == kept + [0] * (k - len(kept))
            assert counts[image] == len(kept)


def test_a_threshold_between_two_floats_is_not_rounded():
    # 3 / 10 in float32 is above .3: the second box goes, as it does where the threshold is a double.
    boxes = np.float32([[[0, 0, 10, 1], [0, 0, 3, 1]]])
    for threshold, count in ((0.3, 1), (0.30000001192092896, 2), (0.31, 2)):
        for _, counts in run("nms", {"b": boxes, "s": np.float32([[2, 1]])}, 2, k=2, iou_threshold=threshold):
            assert counts.tolist() == [count]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 3),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([1, 3, 16, 17]),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(0, 2**32 - 1),
)
def test_roi_align_is_that_of_the_definition(sampling_ratio, aligned, levels, channels, size, seed):
    rng = np.random.default_rng(seed)
    maps = [
        rng.standard_normal((batch, channels, *rng.integers(1, 7, 2))).astype(np.float32)
        for batch in rng.integers(1, 3, levels)
    ]
    sources = [(level, image) for level, each in enumerate(maps) for image in range(len(each))]
    count = int(rng.integers(1, 6))
    images = rng.integers(0, len(sources), count)
    rois = (draw_boxes(rng, count) - 4 + rng.random((count, 4)).astype(np.float32)).astype(np.float32)
    inputs = {"rois": rois, "images": images} | {f"map{i}": each for i, each in enumerate(maps)}
    forms = [None, None, *[(0, 2, 3, 1) if seed % 2 else None] * levels]
    attrs = {"size": size, "sampling_ratio": sampling_ratio, "aligned": aligned}
    for (found,) in run("roi_align", inputs, 1, forms, **attrs):
        for i, image in enumerate(images):
            level, at = sources[image]
            want = naive.roi_align(maps[level][at], rois[i], size, sampling_ratio, aligned)
            np.testing.assert_allclose(found[i], want, rtol=1e-4, atol=1e-4)


def test_regions_without_a_place_are_zeros_and_images_that_are_not_there_are_refused():
    rois = np.float32([[np.nan] * 4, [-np.inf, 0, np.inf, 1], [1e30, 1e30, 1e31, 1e31], [0, 0, -5, -5]])
    inputs = {"rois": rois, "images": np.zeros(4, np.int64), "map": np.ones((1, 2, 3, 3), np.float32)}
    for (found,) in run("roi_align", inputs, size=(2, 2), aligned=True):
        np.testing.assert_array_equal(found, np.zeros((4, 2, 2, 2)))
    for bad in (-1, 1):
        with pytest.raises(PQNetError, match=r"ids: expected entries in \[0, 1\)"):
            run("roi_align", inputs | {"images": np.full(4, bad)}, size=(2, 2))


def paste(mask, box, size):
    """Return what torchvision's paste_mask_in_image gives, with its ``expand_masks`` and ``expand_boxes`` before."""
    border = (len(mask) + 2) / len(mask)
    half, middle = (box[2:] - box[:2]) * 0.5 * np.float32(border), (box[2:] + box[:2]) * 0.5
    x1, y1, x2, y2 = np.concatenate([middle - half, middle + half]).astype(np.int64).tolist()
    wide = torch.nn.functional.pad(torch.from_numpy(mask)[None, None], (1,) * 4)
    shape = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    pasted = torch.nn.functional.interpolate(wide, size=shape, mode="bilinear", align_corners=False)[0, 0].numpy()
    image = np.zeros(size)
    for i, j in np.ndindex(*size):
        if y1 <= i < y1 + shape[0] and x1 <= j < x1 + shape[1]:
            image[i, j] = pasted[i - y1, j - x1]
    return image


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.tuples(st.integers(1, 30), st.integers(1, 30)), st.integers(0, 2**32 - 1))
def test_masks_are_pasted_as_torchvision_does(mask, size, seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((3, mask, mask)).astype(np.float32)
    boxes = np.sort(rng.random((3, 2, 2)).astype(np.float32) * 40 - 5, 1).reshape(3, 4)
    for (found,) in run("paste_masks", {"masks": masks, "boxes": boxes}, 1, [(2, 0, 1), None], size=size):
        for i in range(3):
            np.testing.assert_allclose(found[i], paste(masks[i], boxes[i], size), atol=2e-6)


def test_masks_of_boxes_without_a_place_are_pasted_somewhere():
    boxes = np.float32([[np.nan] * 4, [-np.inf, 0, np.inf, 1], [1e30, 1e30, 1e31, 1e31], [5, 5, 2, 2]])
    found = run("paste_masks", {"masks": np.ones((4, 3, 3), np.float32), "boxes": boxes}, size=(4, 5))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.floats(1, 300), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_peaks_are_those_of_the_resized_heatmaps(size, width, height, seed):
    rng = np.random.default_rng(seed)
    heatmaps = rng.standard_normal((2, 3, size, size)).astype(np.float32)
    boxes = np.float32([[3, 2, 3 + width, 2 + height + 0.25], [-1.5, 0, -1.4, 0.2]])
    numpy, kernel, by_torch = run("heatmap_peaks", {"maps": heatmaps, "boxes": boxes}, 2)
    for i, box in enumerate(boxes):
        extent = np.maximum(box[2:] - box[:2], np.float32(1))
        shape = [int(n) for n in np.ceil(extent)[::-1]]
        large = torch.nn.functional.interpolate(
            torch.from_numpy(heatmaps[i])[None], size=shape, mode="bicubic", align_corners=False
        )[0].numpy()
        for places, scores in (numpy, kernel, by_torch):
            np.testing.assert_allclose(scores[i], large.max((1, 2)), rtol=1e-5, atol=1e-5)
            at = np.floor((places[i] - box[:2]) / extent * shape[::-1] + 1e-3).astype(int)
            for k in range(3):  # of two pixels that are as large but for the last bits, either may be found
                np.testing.assert_allclose(large[k, at[k, 1], at[k, 0]], large[k].max(), rtol=1e-5, atol=1e-5)


def test_equal_peaks_are_found_at_the_first_pixel():
    maps = np.zeros((1, 1, 4, 4), np.float32)
    for places, scores in run("heatmap_peaks", {"maps": maps, "boxes": np.float32([[2, 1, 600, 9]])}, 2):
        np.testing.assert_array_equal(places, np.float32([[[2.5, 1.5]]]))
        assert not scores.any()


def test_the_same_map_in_another_order_is_made_once():
    b = GraphBuilder({"rois": ValueInfo((2, 4)), "images": ValueInfo((2,), "int64"), "map": ValueInfo((1, 4, 8, 8))})
    pixels = b.add("relu", "map")
    outputs = {f"y{n}": b.add("roi_align", "rois", "images", pixels, size=(n, n)) for n in (2, 3)}
    program = Program(b.build(outputs), {}, Store())
    copies = [step.label for _, _, step in program.kernel_steps() if step.label == "copy"]
    assert len(copies) == 2  # of the map and of the regions
