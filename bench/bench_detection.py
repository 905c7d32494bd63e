"""torchvision's detectors, imported whole: what they find on real images beside PyTorch, and Mask R-CNN from its codes.

Weights are random, with statistics of norms that fit the images, so that every detector finds some tens of things.
``matched`` is the share of PyTorch's detections that the imported model has too: same label, score, and a box with an
IoU above .99; ``control`` is the share of what PyTorch finds in double precision that it finds in single precision
too: where scores are equal but for rounding, which of them come first, and so which are kept, is left to chance.
``same_count`` is on how many images there are as many; ``worst`` the largest difference of masks or of scores of
keypoints, of those matched.

With ``--mask-rcnn``, Mask R-CNN ResNet-50-FPN for images of 800 x 1066 is packed by the preset of its paper:
``file_mib`` is its whole file, ``ratio`` its time from codes over PyTorch's float time, the runs in turn. Where
torchvision has no compiled operators, plain Python stands in for two, whose time is not counted: a PyTorch that had
them would take longer. ``decoded`` is the largest difference, relative, from the same model with decoded weights.

Example: ``python bench/bench_detection.py --only retina ssd``, ``python bench/bench_detection.py --mask-rcnn``
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import OtherLoad, emit, machine

import pqnet
from pqnet import Packed
from pqnet_converters import from_torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import test_from_torchvision as detectors
from realdata import imagenet_dev

MIB, SIZE = 2**20, (800, 1066)
AWAY = [0.0]  # seconds in what stands in for compiled operators


def photos(count: int) -> np.ndarray:
    """Return images (N, 3, 200, 224) from 0 to 1."""
    chosen: np.ndarray = imagenet_dev(count)[0][:, 12:212].transpose(0, 3, 1, 2).astype(np.float32) / 255
    return chosen


def uncounted(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            AWAY[0] += time.perf_counter() - start

    return call


def stand_in() -> None:
    """Let plain Python sample regions where torchvision has no operator for it, and count neither that nor its nms."""
    if "torchvision_cpu" not in sys.modules:
        return
    import torchvision.ops.boxes
    import torchvision.ops.poolers

    def roi_align(maps: Any, boxes: Any, output_size: Any, spatial_scale: float, sampling_ratio: int) -> Any:
        rois = boxes if isinstance(boxes, torch.Tensor) else torchvision.ops._utils.convert_boxes_to_roi_format(boxes)
        return detectors.roi_align(maps, rois, output_size, spatial_scale, sampling_ratio)

    torchvision.ops.poolers.roi_align = uncounted(roi_align)
    torchvision.ops.boxes.nms = uncounted(torchvision.ops.boxes.nms)


def in_double(module: torch.nn.Module, images: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """Return what a detector finds when PyTorch computes in double precision."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            module = copy.deepcopy(module).double()
            return [module([torch.from_numpy(image).double()])[0] for image in images]
    finally:
        torch.set_default_dtype(torch.float32)


def compare(kind: str, count: int) -> None:
    """Compare a detector with PyTorch on images."""
    torch.manual_seed(0)
    images = photos(count)
    module = detectors.with_statistics(detectors.factories()[kind](), images[:4])
    model = from_torchvision(module, images.shape[2:])
    with torch.no_grad():
        wanted = [module([torch.from_numpy(image)])[0] for image in images]
    found = model.run({"images": images})
    hits = [detectors.matched(found, i, want) for i, want in enumerate(wanted)]
    exact = in_double(module, images)
    single = [{name: value[None].numpy() for name, value in want.items()} for want in wanted]
    single = [{**each, "count": [each["boxes"].shape[1]]} for each in single]
    same = [detectors.matched(have, 0, want) for have, want in zip(single, exact, strict=True)]
    worst = [0.0]
    for i, want in enumerate(wanted):
        for name in want.keys() & {"masks", "keypoints_scores"}:
            there = hits[i] >= 0
            worst.append(float(np.abs(found[name][i][hits[i][there]] - want[name].numpy()[there]).max(initial=0)))
    counts = [len(want["boxes"]) for want in wanted]
    emit(
        kind,
        images=count,
        detections=sum(counts),
        same_count=sum(int(a) == b for a, b in zip(found["count"], counts, strict=True)),
        matched=float((np.concatenate(hits) >= 0).mean()),
        control=float((np.concatenate(same) >= 0).mean()),
        worst=max(worst),
    )


def mask_rcnn(rounds: int) -> None:
    """Pack Mask R-CNN, measure its file and its time beside PyTorch's."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.manual_seed(0)
    small = torch.from_numpy(photos(2))
    images = torch.nn.functional.interpolate(small, size=SIZE, mode="bilinear").numpy()
    module = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, box_score_thresh=0.2)
    module = detectors.with_statistics(module, images[:1])
    model = from_torchvision(module, SIZE)
    packed = pqnet.quantize(model, "bgd-mask-rcnn", None, metric="none", effort="low", progress=False)
    packed = packed.with_golden(packed.draw_golden())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "small.h5")
        packed.save(path)
        emit("mask-rcnn file", file_mib=path.stat().st_size / MIB, counted_mib=packed.size().total / MIB)
        packed = pqnet.load(path)
    image = images[1:]
    ours: list[float] = []
    theirs: list[float] = []
    load = OtherLoad()
    with torch.no_grad():
        for i in range(rounds + 1):
            start, AWAY[0] = time.perf_counter(), 0.0
            module([torch.from_numpy(image[0])])
            seconds = time.perf_counter() - start - AWAY[0]
            start = time.perf_counter()
            found = packed.run({"images": image})
            if i:  # the first ones warm up
                theirs.append(seconds)
                ours.append(time.perf_counter() - start)
    times = statistics.median(ours), statistics.median(theirs)
    least = min(ours) / min(theirs)
    emit("mask-rcnn time", seconds=times[0], pytorch=times[1], ratio=times[0] / times[1], of_least=least)
    emit("mask-rcnn load", other_load=load.share(), detections=int(found["count"].sum()))
    params = {n: p.decode() if isinstance(p, Packed) else p for n, p in packed.graph.params.items()}
    decoded = pqnet.Model(replace(packed.graph, params=params)).run({"images": image})
    differences = {
        name: float(np.abs(found[name] - want).max() / max(np.abs(want).max(), 1e-30)) for name, want in decoded.items()
    }
    emit("mask-rcnn decoded", **differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(detectors.factories()), help="default: all")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--mask-rcnn", action="store_true", help="pack and time Mask R-CNN instead")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    emit("machine", **machine(["torch"]), torch_threads=torch.get_num_threads())
    stand_in()
    if args.mask_rcnn:
        mask_rcnn(args.rounds)
        return
    for kind in args.only or detectors.factories():
        compare(kind, args.images)


if __name__ == "__main__":
    main()
