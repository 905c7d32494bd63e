"""Whole detectors: small ones of plain modules built as torchvision's are, and torchvision's own where it is there."""

import contextlib
import math
import re
import sys
from collections import OrderedDict
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnxfiles import outputs, runtime
from realdata import imagenet_dev, needs_data
from torch import nn

import pqnet
from pqnet import PQNetError
from pqnet.cli.main import main
from pqnet.io import graph_from_bytes, graph_to_bytes
from pqnet_converters import from_torchvision, to_onnx

torchvision = None
with contextlib.suppress(ImportError):  # where its wheel has no operators
    import torchvision_cpu  # noqa: F401
with contextlib.suppress(ImportError):
    import torchvision

SIZE = (40, 56)


class Transform(nn.Module):
    """Resizes the shorter side to ``min_size``, as torchvision does."""

    def __init__(self, min_size, divisible):
        super().__init__()
        self.min_size, self.size_divisible = min_size, divisible
        self.image_mean, self.image_std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]

    def resize(self, image, target):
        scale = self.min_size / min(image.shape[-2:])
        size = [math.floor(n * scale) for n in image.shape[-2:]]
        return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0], target

    def forward(self, image):
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.image_mean, self.image_std))
        image, _ = self.resize((image - mean) / std, None)
        pads = [-n % self.size_divisible for n in image.shape[-2:]]
        return F.pad(image, (0, pads[1], 0, pads[0]))[None], image.shape[-2:]


class Anchors(nn.Module):
    """One square and one wide box around each pixel of each map."""

    def forward(self, images, maps):
        found = []
        for level, (rows, columns) in enumerate(each.shape[-2:] for each in maps):
            side = images.tensors.shape[-1] / columns
            y, x = torch.meshgrid(torch.arange(rows) * side, torch.arange(columns) * side, indexing="ij")
            centers = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
            extents = torch.tensor([[-1.0, -1, 1, 1], [-2, -1, 2, 1]]) * 6 * (level + 1)
            found.append((centers + extents).reshape(-1, 4))
        return [torch.cat(found)] * len(images.image_sizes)


class Coder:
    """Offsets in units of the box; coordinates of several classes side by side."""

    def decode_single(self, offsets, boxes):
        size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, offsets.shape[1] // 2)
        middle = ((boxes[:, 2:] + boxes[:, :2]) / 2).repeat(1, offsets.shape[1] // 2)
        shift = torch.tensor([-0.5, -0.5, 0.5, 0.5]).repeat(offsets.shape[1] // 4)
        return middle + (offsets.clamp(-1, 1) + shift) * size


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        return OrderedDict([("fine", x), ("coarse", self.deep(x).relu())])


def boosted(module, factor=3.0):
    """Make the scores of random weights differ."""
    for parameter in module.parameters():
        parameter.data *= factor
    return module


def best(boxes, scores, labels, threshold, most):
    kept = naive.nms(boxes.numpy(), scores.numpy(), labels.numpy(), threshold, most)
    return boxes[kept], scores[kept], labels[kept]


def clipped(boxes, size):
    return torch.stack([boxes[:, i].clamp(0, size[1 - i % 2]) for i in range(4)], 1)


class RetinaHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.classes, self.offsets = boosted(nn.Conv2d(8, 6, 3, padding=1)), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, maps):
        def rows(layer, numbers):
            parts = [layer(x).reshape(x.shape[0], 2, numbers, *x.shape[2:]).permute(0, 3, 4, 1, 2) for x in maps]
            return torch.cat([part.reshape(part.shape[0], -1, numbers) for part in parts], 1)

        return {"cls_logits": rows(self.classes, 3), "bbox_regression": rows(self.offsets, 4)}


class RetinaNet(nn.Module):
    """A detector of one stage with torchvision's parts; its postprocessing has sizes that depend on data."""

    def __init__(self):
        super().__init__()
        self.transform, self.backbone, self.head = Transform(32, 16), Backbone(), RetinaHead()
        self.anchor_generator, self.box_coder = Anchors(), Coder()
        self.score_thresh, self.nms_thresh, self.detections_per_img, self.topk_candidates = 0.6, 0.4, 9, 30

    def forward(self, image):
        x, size = self.transform(image)
        maps = list(self.backbone(x).values())
        outputs = {name: each[0] for name, each in self.head(maps).items()}
        anchors = self.anchor_generator(SimpleNamespace(tensors=x, image_sizes=[size]), maps)[0]
        counts, found = [each.shape[2] * each.shape[3] * 2 for each in maps], []
        parts = (value.split(counts) for value in (outputs["cls_logits"], outputs["bbox_regression"], anchors))
        for logits, offsets, own in zip(*parts, strict=True):
            scores = logits.sigmoid().flatten()
            order = scores.argsort(descending=True, stable=True)[: self.topk_candidates]
            order = order[scores[order] > self.score_thresh]
            boxes = self.box_coder.decode_single(offsets[order // 3], own[order // 3])
            found.append((clipped(boxes, size), scores[order], order % 3))
        boxes, scores, labels = best(
            *map(torch.cat, zip(*found, strict=True)), self.nms_thresh, self.detections_per_img
        )
        ratio = torch.tensor([image.shape[2] / size[1], image.shape[1] / size[0]] * 2)
        return {"boxes": boxes * ratio, "labels": labels, "scores": scores}


class Pool:
    def __init__(self, size, names=("fine", "coarse")):
        self.output_size, self.sampling_ratio, self.featmap_names = (size, size), 2, list(names)
        self.canonical_scale, self.canonical_level = 16, 3

    def __call__(self, maps, boxes):
        rows = []
        for box in boxes:
            extent = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
            level = min(max(math.floor(3 + math.log2(max(extent, 1e-9) / 16) + 1e-6), 2), 3) - 2
            scaled = (box * (1 / 4, 1 / 8)[level]).tolist()
            rows.append(naive.roi_align(list(maps.values())[level][0].numpy(), scaled, self.output_size, 2))
        return torch.from_numpy(np.float32(rows))


class RPNHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores, self.offsets = boosted(nn.Conv2d(8, 2, 1)), nn.Conv2d(8, 8, 1)

    def forward(self, maps):
        return [self.scores(x) for x in maps], [self.offsets(x) for x in maps]


class GeneralizedRCNN(nn.Module):
    """A detector of two stages with masks; see `RetinaNet`."""

    def __init__(self):
        super().__init__()
        self.transform, self.backbone = Transform(32, 16), Backbone()
        self.rpn, self.roi_heads = nn.Module(), nn.Module()
        rpn, heads = self.rpn, self.roi_heads
        rpn.head, rpn.anchor_generator, rpn.box_coder = RPNHead(), Anchors(), Coder()
        rpn.pre_nms_top_n, rpn.post_nms_top_n = lambda: 24, lambda: 12
        rpn.nms_thresh, rpn.score_thresh, rpn.min_size = 0.5, 0.4, 1e-3
        heads.box_roi_pool, heads.mask_roi_pool, heads.box_coder = Pool(3), Pool(4), Coder()
        heads.box_head = nn.Sequential(nn.Flatten(), nn.Linear(72, 16), nn.ReLU())
        predictor = nn.Linear(16, 4 * 5)
        heads.box_predictor = Predictor(boosted(predictor, 4))
        heads.mask_head, heads.mask_predictor = nn.Conv2d(8, 8, 3, padding=1), boosted(nn.ConvTranspose2d(8, 4, 2, 2))
        heads.score_thresh, heads.nms_thresh, heads.detections_per_img = 0.2, 0.4, 7
        heads.has_mask, heads.has_keypoint = lambda: True, lambda: False

    def forward(self, image):
        (x, size), rpn, heads = self.transform(image), self.rpn, self.roi_heads
        maps, found = self.backbone(x), []
        every = rpn.anchor_generator(SimpleNamespace(tensors=x, image_sizes=[size]), list(maps.values()))[0]
        anchors = every.split([2 * each.shape[2] * each.shape[3] for each in maps.values()])
        for level, (logits, offsets) in enumerate(zip(*rpn.head(list(maps.values())), strict=True)):
            scores = logits.permute(0, 2, 3, 1).flatten().sigmoid()
            rows = offsets.reshape(2, 4, *offsets.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4)
            order = scores.argsort(descending=True, stable=True)[:24]
            boxes = clipped(rpn.box_coder.decode_single(rows[order], anchors[level][order]), size)
            wide = ((boxes[:, 2:] - boxes[:, :2]) >= 1e-3).all(1) & (scores[order] >= 0.4)
            found.append((boxes[wide], scores[order][wide], torch.full((int(wide.sum()),), level)))
        boxes, _, _ = best(*map(torch.cat, zip(*found, strict=True)), 0.5, 12)
        logits, offsets = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, boxes)))
        boxes = heads.box_coder.decode_single(offsets, boxes).reshape(-1, 4, 4)[:, 1:].reshape(-1, 4)
        boxes, scores = clipped(boxes, size), logits.softmax(1)[:, 1:].flatten()
        labels = torch.arange(1, 4).repeat(len(logits))
        fits = (scores > 0.2) & ((boxes[:, 2:] - boxes[:, :2]) >= 1e-2).all(1)
        boxes, scores, labels = best(boxes[fits], scores[fits], labels[fits], 0.4, 7)
        masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, boxes))).sigmoid()
        boxes = boxes * torch.tensor([image.shape[2] / size[1], image.shape[1] / size[0]] * 2)
        chosen = [mask[label].numpy() for mask, label in zip(masks, labels, strict=True)]
        pasted = [paste(mask, box.numpy(), SIZE) for mask, box in zip(chosen, boxes, strict=True)]
        return {
            "boxes": boxes,
            "labels": labels,
            "scores": scores,
            "masks": torch.from_numpy(np.array(pasted))[:, None],
        }


class Predictor(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).split([4, 16], 1)


def agree(found, i, want):
    """Assert that image ``i`` has the detections of a module: same order, labels, boxes, scores, masks."""
    count = int(found["count"][i])
    assert count == len(want["boxes"])
    for name, value in want.items():
        have = found[name][i]
        np.testing.assert_array_equal(have[count:], 0)
        if name == "labels":
            np.testing.assert_array_equal(have[:count], value)
        else:
            tolerance = 2e-2 if name in ("boxes", "keypoints") else 2e-3
            np.testing.assert_allclose(have[:count], value, atol=tolerance, err_msg=name)
    return count


def paste(mask, box, size):
    from test_detection_ops import paste as reference

    return reference(mask, box, size).astype(np.float32)


@cache
def converted(kind):
    """Return a small detector, and what it becomes."""
    torch.manual_seed(5)
    module = kind().eval()
    return module, from_torchvision(module, SIZE)


@pytest.mark.parametrize("kind", [RetinaNet, GeneralizedRCNN])
def test_small_detectors_find_what_their_modules_find(kind):
    module, model = converted(kind)
    images = np.random.default_rng(1).random((3, 3, *SIZE)).astype(np.float32)
    with torch.no_grad():
        wanted = [module(torch.from_numpy(image)) for image in images]
    found = model.run({"images": images})
    counts = [agree(found, i, want) for i, want in enumerate(wanted)]
    assert max(counts) > 3
    agree(model.run({"images": images[1:2]}), 0, wanted[1])
    assert {"backbone.stem", "backbone.deep"} <= set(model.graph.layers())


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [(RetinaNet, {"default": pqnet.PQ(k=16, d=4)}), (RetinaNet, "small-blocks"), (GeneralizedRCNN, "small-blocks")],
)
def test_a_packed_detector_runs_from_its_codes(kind, recipe):
    """Layers of a head that all maps share are packed once, for all of them."""
    model = converted(kind)[1]
    images = np.random.default_rng(1).random((4, 3, *SIZE)).astype(np.float32)
    small = pqnet.quantize(model, recipe, images, progress=False)
    shared = "head.classes" if kind is RetinaNet else "rpn.head.scores"
    assert len(small.graph.uses()[shared]) == 2
    assert small.size().codes > 0 and small.size().total < model.size().total
    found = small.run({"images": images})
    assert found["boxes"].shape == (4, 9 if kind is RetinaNet else 7, 4) and found["count"].max() > 0


@pytest.mark.parametrize("kind", [RetinaNet, GeneralizedRCNN])
def test_detectors_find_the_same_in_onnx_runtime(kind):
    model = converted(kind)[1]
    session = runtime(to_onnx(model))
    images = np.random.default_rng(1).random((3, 3, *SIZE)).astype(np.float32)
    for some in (images, images[:1]):
        got, want = outputs(session, {"images": some}), model.run({"images": some})
        assert want["count"].max() > 3
        for name in want:
            np.testing.assert_allclose(got[name], want[name], atol=2e-3 if name == "boxes" else 1e-4, err_msg=name)


def test_records_of_detectors_leave_out_what_is_large():
    model = converted(GeneralizedRCNN)[1]
    drawn = model.draw_golden()
    assert drawn.outputs["count"].sum() > 0 and drawn.outputs["masks"].nbytes > 8192
    golden = model.with_golden(drawn).golden
    assert list(golden.outputs) == ["boxes", "labels", "scores", "count"]
    again = pqnet.Model(*graph_from_bytes(graph_to_bytes(model.graph, golden))).golden
    assert list(again.images) == ["images"]
    np.testing.assert_array_equal(again.inputs()["images"], golden.inputs()["images"])
    assert again.largest_difference(model.run(again.inputs())) < 1e-5


def test_another_module_is_refused():
    with pytest.raises(PQNetError, match=r"torchvision's detectors \(GeneralizedRCNN, .*\), got Linear; from_torch"):
        from_torchvision(nn.Linear(2, 3), SIZE)


def test_the_command_line_converts_a_detector_whole(tmp_path, capsys):
    path = tmp_path / "small.h5"
    assert main(["convert", "torch", f"{__name__}:RetinaNet", "--input", "1x3x40x56", "-o", str(path)]) == 0
    assert re.search(r"largest difference from PyTorch's scores \S+, of [1-9]\d* detections", capsys.readouterr().out)
    model = pqnet.load(path)
    assert list(model.outputs) == ["boxes", "labels", "scores", "count"] == list(model.golden.outputs)
    image = model.golden.inputs()["images"]
    assert image.shape == (1, 3, *SIZE) and image.min() == 0 and image.max() <= 1
    assert model.golden.outputs["count"].sum() > 0 and model.golden.outputs["boxes"].any()
    assert main(["verify", str(path)]) == 0
    ruined = {name: -p for name, p in model.graph.params.items() if name.startswith("backbone")}
    ruined = pqnet.Model(replace(model.graph, params={**model.graph.params, **ruined}), model.golden)
    ruined.save(path)
    assert main(["verify", str(path)]) == 2
    assert main(["convert", "torch", f"{__name__}:RetinaNet", "--input", "1x3xHxW", "-o", str(path)]) == 2
    assert "expected one batch of images of a fixed size" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(40,), (0, 56), (40.0, 56), 40])
def test_sizes_that_no_image_has_are_refused(size):
    with pytest.raises(PQNetError, match="image_size: expected height and width in pixels"):
        from_torchvision(RetinaNet(), size)


def factories():
    """Return torchvision's detectors by name, with thresholds at which random weights find some tens of things."""
    detection = torchvision.models.detection
    plain = {"weights": None, "weights_backbone": None}
    small = {**plain, "min_size": 160, "max_size": 240}
    return {
        "faster": lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(**plain, box_score_thresh=0.2),
        "mask": lambda: detection.maskrcnn_resnet50_fpn(**small, box_score_thresh=0.2, box_detections_per_img=20),
        "keypoint": lambda: detection.keypointrcnn_resnet50_fpn(
            **small, box_score_thresh=0.0, box_detections_per_img=8
        ),
        "retina": lambda: detection.retinanet_resnet50_fpn(**small, score_thresh=0.02, detections_per_img=50),
        "fcos": lambda: detection.fcos_resnet50_fpn(**small, score_thresh=0.3, detections_per_img=50),
        "ssd": lambda: detection.ssd300_vgg16(**plain, score_thresh=0.2, detections_per_img=50),
        "ssdlite": lambda: detection.ssdlite320_mobilenet_v3_large(**plain, detections_per_img=50),
    }


def roi_align(maps, rois, size, scale, ratio):
    """Compute torchvision's regions by its own plain Python, a few at a time, which takes no compiler."""
    plain = sys.modules["torchvision.ops.roi_align"]._roi_align.__wrapped__
    parts = [plain(maps, part, scale, *size, ratio, False) for part in rois.split(64)]
    return torch.cat(parts) if len(rois) else maps.new_zeros((0, maps.shape[1], *size))


def with_statistics(module, images):
    """Give the norms of random weights the statistics of images, and their scores some contrast."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    if norms:
        module.backbone.train()
        with torch.no_grad():
            module.backbone(torch.from_numpy(images - 0.45) / 0.22)
    # Of ResNet-50's two stages, with more, scores of an image are 1 but for rounding, and which are kept is chance.
    names = dict(module.named_modules())
    contrast = 10 if names.keys() & {"roi_heads.mask_predictor", "roi_heads.keypoint_predictor"} else 30
    for name, parameter in module.named_parameters():
        if re.search(r"cls_score.weight|cls_logits.weight|classification_head.module_list.\d.1.weight", name):
            parameter.data *= contrast
    return module.eval()


def matched(found, i, want):
    """Return which detections of a module an imported one has too: label, score, and a box with an IoU of .99."""
    count = int(found["count"][i])
    boxes, labels, scores = (found[name][i, :count] for name in ("boxes", "labels", "scores"))
    hits = []
    for box, label, score in zip(*(want[name].numpy() for name in ("boxes", "labels", "scores")), strict=True):
        near = np.flatnonzero((labels == label) & (np.abs(scores - score) < 1e-3))
        fits = [j for j in near if naive.overlap(boxes[j], box) > 0.99 or np.abs(boxes[j] - box).max() < 1e-2]
        hits.append(fits[0] if fits else -1)
    return np.array(hits)


@needs_data
@pytest.mark.skipif(torchvision is None, reason="torchvision is not installed")
@pytest.mark.parametrize("kind", ["faster", "mask", "keypoint", "retina", "fcos", "ssd", "ssdlite"])
def test_detectors_of_torchvision_find_what_they_find_in_pytorch(kind, monkeypatch):
    if "torchvision_cpu" in sys.modules:
        monkeypatch.setattr("torchvision.ops.poolers.roi_align", lambda *a, **k: roi_align(*a[:2], **_renamed(k)))
    photos = imagenet_dev(4)[0][:, 12:212].transpose(0, 3, 1, 2).astype(np.float32) / 255  # 200 x 224
    torch.manual_seed(0)
    module = with_statistics(factories()[kind](), photos)
    model = from_torchvision(module, photos.shape[2:])
    found = model.run({"images": photos[:3]})
    with torch.no_grad():
        wanted = module([torch.from_numpy(photo) for photo in photos[:3]])
    assert max(len(want["boxes"]) for want in wanted) >= 5
    for i, want in enumerate(wanted):
        assert found["count"][i] == len(want["boxes"])
        hits = matched(found, i, want)
        # Of random scores the last two in a list may be equal but for rounding, and another one be kept.
        assert (hits < 0).sum() <= len(hits) // 20
        for name in want.keys() & {"masks", "keypoints_scores"}:
            np.testing.assert_allclose(found[name][i][hits[hits >= 0]], want[name].numpy()[hits >= 0], atol=5e-3)


def _renamed(k):
    return {"size": k["output_size"], "scale": k["spatial_scale"], "ratio": k["sampling_ratio"]}
