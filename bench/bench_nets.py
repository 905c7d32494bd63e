"""Whole networks from their codes against engines that run the decoded float network, in one process and in turn.

``over_ours`` are ratios of medians, theirs / ours: above 1 pqnet is faster. Before anything is timed the outputs of all
engines are compared; a row whose outputs are more than 1e-4 of the largest apart is an error and has no figures.
``other_load`` is the share of CPU time that other processes took meanwhile. Above 0.05 the row is measured again, twice
at most: the load decides, never the figures. A row that is still above it is good for nothing.

Example: ``python bench/bench_nets.py --only resnet50-channel roberta-base-128 --peers onnxruntime openvino``
"""

import argparse
import sys

import numpy as np
from common import emit, interleaved, machine
from nets import NETS, decoded, sample
from peers import PEERS, make_peers

import pqnet

TOLERANCE = 1e-4
LOAD, ATTEMPTS = 0.05, 3


def bench(name: str, peers: list[str], runs: int, threads: int) -> bool:
    """Print the row of one network; returns whether all engines agree."""
    build, batch, codes = NETS[name]
    graph = build()
    inputs = sample(graph, batch)
    model = pqnet.Model(graph)
    arrays = list(inputs.values())
    engines = {"pqnet": lambda: model(*arrays, threads=threads), **make_peers(peers, decoded(graph), inputs, threads)}
    outputs = {engine: run() for engine, run in engines.items()}
    want = outputs[peers[0]] if peers else outputs["pqnet"]
    apart = {engine: float(np.abs(got - want).max() / np.abs(want).max()) for engine, got in outputs.items()}
    if not all(a <= TOLERANCE for a in apart.values()):  # not: NaN is apart too
        emit(name, error=f"outputs differ from those of {peers[0] if peers else 'pqnet'}", apart=apart)
        return False
    attempts, others = 0, 1.0
    while others > LOAD and attempts < ATTEMPTS:
        seconds, others = interleaved(engines, runs)
        attempts += 1
    emit(
        name,
        codes=codes,
        batch=batch,
        bytes=model.size().total,
        ms={engine: float(f"{1e3 * s:.4g}") for engine, s in seconds.items()},
        over_ours={peer: float(f"{seconds[peer] / seconds['pqnet']:.3g}") for peer in peers},
        largest_difference=max(apart.values()),
        other_load=others,
        attempts=attempts,
    )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NETS, default=list(NETS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    emit("machine", **machine(args.peers) | {"threads": args.threads})
    agree = [bench(name, args.peers, args.runs, args.threads) for name in args.only]
    sys.exit(not all(agree))


if __name__ == "__main__":
    main()
