"""Bytes of the papers' networks under their presets: as the papers count them, and of the file.

Weights are random: sizes depend on shapes alone. ``share`` layers of RoBERTa have the same parameters.

Example: ``python bench/bench_sizes.py``
"""

import argparse
import dataclasses
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from common import emit
from nets import decoded, efficientnet_b3, resnet_channel, roberta

from pqnet import PQ, Model, PackedPQ
from pqnet.graph import Graph
from pqnet.pipeline.recipe import resolve_recipe

ROBERTA = partial(roberta, vocabulary=50265)
# Row name: network, preset, MiB that its paper states.
ROWS: dict[str, tuple[Callable[[], Graph], str, float]] = {
    "resnet18, small blocks": (partial(resnet_channel, "resnet18"), "bgd-resnet18-small", 1.54),
    "resnet18, large blocks": (partial(resnet_channel, "resnet18"), "bgd-resnet18-large", 1.03),
    "resnet50, small blocks": (partial(resnet_channel, "resnet50"), "bgd-resnet50-small", 5.09),
    "resnet50, large blocks": (partial(resnet_channel, "resnet50"), "bgd-resnet50-large", 3.19),
    "efficientnet-b3": (efficientnet_b3, "ipq-efficientnet", 3.3),
    "roberta-base": (ROBERTA, "ipq-transformer", 38),
    "roberta-base, share 2": (partial(ROBERTA, share=2), "ipq-transformer", 14),
}


def coded(graph: Graph, preset: str) -> Graph:
    """Return a network with random codes in the blocks of a preset."""
    graph, rng = decoded(graph), np.random.default_rng(0)
    params = dict(graph.params)
    for name, codec in resolve_recipe(preset, graph).items():
        weight = graph.layers()[name].params["weight"]
        shape = tuple(graph.params[weight].shape)
        if isinstance(codec, PQ):
            codes = rng.integers(0, codec.k, (shape[0], math.prod(shape[1:]) // codec.d))
            params[weight] = PackedPQ(codec, shape, codes, rng.standard_normal((codec.k, codec.d)).astype(np.float16))
    return dataclasses.replace(graph, params=params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    args = parser.parse_args()
    for row in args.only:
        network, preset, stated = ROWS[row]
        model = Model(coded(network(), preset))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "small.h5")
            model.save(path)
            size, mib = model.size(), 2**20
            emit(
                row,
                preset=preset,
                paper_mib=stated,
                counted_mib=size.total / mib,
                file_mib=path.stat().st_size / mib,
                ratio=size.ratio,
            )


if __name__ == "__main__":
    main()
