"""Bytes of updates (``pqnet diff``) of ResNet-50 files whose codebooks, biases and norms changed, and codes.

Codes and codebooks are random, in the codecs of a preset. ``trained`` changes every number that is no code by a share
of it, as training does, ``new`` draws all of them anew, ``codes`` changes so many of the bytes of codes as well.
``share`` is the update's part of the new file; a patched file is compared with that.

Example: ``python bench/bench_delta.py --preset bgd-resnet50-small``
"""

import argparse
import filecmp
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import emit
from nets import Draw

import pqnet
from pqnet import Packed, PackedPQ
from pqnet.graph import Graph
from pqnet.io import read_container, write_container
from pqnet.pipeline import resolve_recipe
from pqnet_converters.checkpoints.resnet import resnet_graph, resnet_layers

PRESETS = ("bgd-resnet50-small", "bgd-resnet50-large")
Change = Callable[[str, np.ndarray, np.random.Generator], np.ndarray]


def packed_resnet50(preset: str) -> Graph:
    """Return ResNet-50 with random codes in the codecs of a preset; what it leaves float is random too."""
    draw = Draw(0)
    params: dict[str, np.ndarray | Packed] = {}
    for name, layer in resnet_layers("resnet50").items():
        if name == "fc":
            params |= {"fc.weight": draw.dense((1000, layer.inputs), 1), "fc.bias": draw.dense((1000,), 1)}
            continue
        params[f"{name}.weight"] = draw.dense((layer.outputs, layer.inputs, layer.kernel, layer.kernel), gain=2)
        params |= {f"{layer.norm}.{role}": array for role, array in draw.norm(layer.outputs).items()}
    graph = resnet_graph("resnet50", params, "random codes")
    packed = dict(graph.params)
    for name, codec in resolve_recipe(preset, graph).items():
        weight = graph.layers()[name].params["weight"]
        if isinstance(codec, pqnet.PQ):
            shape = graph.params[weight].shape
            codes = draw.rng.integers(0, codec.k, (shape[0], int(np.prod(shape[1:])) // codec.d))
            codebook = draw.rng.standard_normal((codec.k, codec.d)).astype(codec.codebook_dtype)
            packed[weight] = PackedPQ(codec, shape, codes, codebook)
    return replace(graph, params=packed)


def trained(rate: float) -> Change:
    return lambda name, array, rng: (array * (1 + rate * rng.standard_normal(array.shape))).astype(array.dtype)


def new(name: str, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(array.shape).astype(array.dtype)


def with_codes(rate: float) -> Change:
    def change(name: str, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if array.dtype.kind == "f":
            return trained(0.01)(name, array, rng)
        return np.where(rng.random(array.shape) < rate, rng.integers(0, 256, array.shape), array).astype(array.dtype)

    return change


ROWS = {"trained, 0.1 %": trained(0.001), "trained, 1 %": trained(0.01), "trained, 10 %": trained(0.1), "new": new}
ROWS |= {"codes, 1 %": with_codes(0.01), "codes, 10 %": with_codes(0.1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="*", choices=PRESETS, default=list(PRESETS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old, changed, update, patched = (Path(folder, name) for name in ("old.h5", "new.h5", "u.pqd", "patched.h5"))
        for preset in args.preset:
            pqnet.Model(packed_resnet50(preset)).save(old)
            header, arrays = read_container(old, "model")
            for row, change in ROWS.items():
                rng, keep = np.random.default_rng(1), not row.startswith("codes")
                made = {n: a if keep and a.dtype.kind != "f" else change(n, a, rng) for n, a in arrays.items()}
                write_container(changed, "model", header, made)
                start = time.perf_counter()
                pqnet.diff(old, changed, update)
                middle = time.perf_counter()
                pqnet.patch(old, update, patched)
                end = time.perf_counter()
                if not filecmp.cmp(changed, patched, shallow=False):
                    raise SystemExit(f"{row}: the patched file is another")
                sizes = {"file": os.path.getsize(changed), "update": os.path.getsize(update)}
                share = sizes["update"] / sizes["file"]
                emit(f"{preset}, {row}", **sizes, share=share, diff_s=middle - start, patch_s=end - middle)


if __name__ == "__main__":
    main()
