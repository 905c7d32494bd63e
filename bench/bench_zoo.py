"""Networks of torchvision with random packed weights against ONNX Runtime's float networks, in one process in turn.

``over`` is the median time of pqnet over that of ONNX Runtime: below 1 pqnet is faster. ``channel``: layers are packed
in blocks of 8 channels with K = 256, else in blocks of the largest divisor. ``small-blocks``: as by that preset. Codes
are drawn, which speed does not depend on. torchvision, onnx and onnxruntime are needed.

Example: ``python bench/bench_zoo.py --only mobilenet_v2 mnasnet1_0 --codes channel``
"""

import argparse
import io
import warnings
from typing import Any

import numpy as np
from common import emit, interleaved, machine
from nets import K
from peers_load import LOADERS

import pqnet
from pqnet import PQ, PackedPQ

SIZES = {"inception_v3": 299, "deeplabv3_mobilenet_v3_large": 224}
NAMES = (
    *("deeplabv3_mobilenet_v3_large", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "regnet_y_800mf"),
    *("squeezenet1_1", "efficientnet_b0", "densenet121", "swin_t", "inception_v3"),
    *("vgg11", "vit_b_16", "convnext_tiny", "shufflenet_v2_x1_0", "resnext50_32x4d"),
)


def load(name: str) -> Any:
    """Return the module and its input."""
    import torch
    import torchvision

    factories = torchvision.models.segmentation if name.startswith("deeplab") else torchvision.models
    torch.manual_seed(0)
    options = {"weights": None} | ({"weights_backbone": None} if name.startswith("deeplab") else {})
    module = getattr(factories, name)(**options).eval()
    size = SIZES.get(name, 224)
    return module, torch.randn(1, 3, size, size)


def packed(graph: Any, codes: str, seed: int = 0) -> Any:
    """Return the graph with drawn codes of the scale of its weights."""
    from dataclasses import replace

    rng, params = np.random.default_rng(seed), dict(graph.params)
    for node in graph.layers().values():
        name = node.params["weight"]
        weight = params[name]
        if not isinstance(weight, np.ndarray) or weight.ndim not in (2, 4):
            continue
        along = weight.shape[1] if codes == "channel" or weight.ndim == 2 else int(np.prod(weight.shape[1:]))
        wanted = 8 if codes == "channel" else 9 if weight.ndim == 4 and weight.shape[2] > 1 else 4
        d = next((d for d in range(wanted, 0, -1) if along % d == 0), 1)
        if d == 1:
            continue  # depthwise filters and the like stay float
        codec = PQ(K, d, "channel" if codes == "channel" else "spatial", clamp="floor").check(weight.shape)
        book = rng.standard_normal((codec.k, d)).astype(codec.codebook_dtype) * np.float32(weight.std())
        drawn = rng.integers(0, codec.k, (weight.shape[0], int(np.prod(weight.shape[1:])) // d))
        params[name] = PackedPQ(codec, weight.shape, drawn, book)
    return replace(graph, params=params)


def bench(name: str, codes: str, runs: int, threads: int, explain: bool) -> None:
    """Print the row of one network."""
    import torch

    from pqnet_converters import from_torch

    module, x = load(name)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, dynamo=False, input_names=["x"])
        model = pqnet.Model(packed(from_torch(module, x).graph, codes))
    array = x.numpy()
    theirs = LOADERS["onnxruntime"](file.getvalue(), {"x": array}, threads)
    engines = {"pqnet": lambda: model(array, threads=threads), "onnxruntime": theirs}
    seconds, others = interleaved(engines, runs)
    ms = {engine: float(f"{1e3 * s:.4g}") for engine, s in seconds.items()}
    emit(name, codes=codes, ms=ms, over=seconds["pqnet"] / seconds["onnxruntime"], other_load=others)
    if explain:
        steps = model.profile({next(iter(model.inputs)): array}, threads=threads)
        for step in sorted(steps, key=lambda s: -s.seconds)[:25]:
            print(f"  {1e3 * step.seconds:8.3f} ms  {step.algorithm:12} {step.label}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--codes", nargs="*", choices=("channel", "small-blocks"), default=["channel"])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--explain", action="store_true")
    args = parser.parse_args()
    emit("machine", **machine(["onnxruntime"]) | {"threads": args.threads})
    for name in args.only:
        for codes in args.codes:
            bench(name, codes, args.runs, args.threads, args.explain)


if __name__ == "__main__":
    main()
