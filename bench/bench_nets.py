"""Whole networks from their codes against engines that run the decoded float network, in one process and in turn.

``over_ours`` are ratios of medians, theirs / ours: above 1 pqnet is faster. Before anything is timed the outputs of all
engines are compared: at most 1e-4 of the largest output apart.

Example: ``python bench/bench_nets.py --only resnet50-channel roberta-base-128 --peers onnxruntime openvino``
"""

import argparse

import numpy as np
from common import emit, interleaved, machine
from nets import NETS, decoded, sample
from peers import make_peers

import pqnet

TOLERANCE = 1e-4


def bench(name: str, peers: list[str], runs: int, threads: int) -> None:
    build, batch, codes = NETS[name]
    graph = build()
    inputs = sample(graph, batch)
    model = pqnet.Model(graph)
    arrays = list(inputs.values())
    engines = {"pqnet": lambda: model(*arrays, threads=threads), **make_peers(peers, decoded(graph), inputs, threads)}
    want = engines["pqnet"]()
    if not np.isfinite(want).all():
        raise AssertionError(f"{name}: outputs are not finite")
    for engine, run in engines.items():
        if (apart := float(np.abs(run() - want).max() / np.abs(want).max())) > TOLERANCE:
            raise AssertionError(f"{name}: outputs of {engine} and pqnet are {apart:.2g} of the largest one apart")
    seconds, others = interleaved(engines, runs)
    emit(
        name,
        codes=codes,
        batch=batch,
        bytes=model.size().total,
        ms={engine: float(f"{1e3 * s:.4g}") for engine, s in seconds.items()},
        over_ours={peer: float(f"{seconds[peer] / seconds['pqnet']:.3g}") for peer in peers},
        other_load=others,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NETS, default=list(NETS))
    parser.add_argument("--peers", nargs="*", default=["onnxruntime", "openvino", "torch"])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    emit("machine", **machine(args.peers) | {"threads": args.threads})
    for name in args.only:
        bench(name, args.peers, args.runs, args.threads)


if __name__ == "__main__":
    main()
