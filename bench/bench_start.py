"""From the start of a process to the first result of a network: seconds of wall time, in fresh processes in turn.

``pqnet_empty_cache`` (one run) starts with no compiled kernels at all, ``pqnet`` with those of the run before.

Example: ``python bench/bench_start.py --net resnet50-spatial --runs 7``
"""

import argparse
import statistics
import tempfile

from common import OtherLoad, emit, machine
from fresh import Files
from nets import NETS
from peers_load import LOADERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--net", choices=[name for name in NETS if name.startswith("resnet")], default="resnet50-spatial"
    )
    parser.add_argument("--peers", nargs="*", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    emit("machine", **machine(args.peers) | {"threads": args.threads})
    engines = ["pqnet", *args.peers]
    with tempfile.TemporaryDirectory() as folder:
        files, load = Files(folder, args.net), OtherLoad()
        empty = files.first_run("pqnet", args.threads, warm=False).seconds
        for engine in engines:
            files.first_run(engine, args.threads)
        files.check(engines)
        times: dict[str, list[float]] = {engine: [] for engine in engines}
        for _ in range(args.runs):
            for engine, into in times.items():
                into.append(files.first_run(engine, args.threads).seconds)
    seconds = {"pqnet_empty_cache": empty} | {engine: statistics.median(values) for engine, values in times.items()}
    rounded = {name: float(f"{s:.4g}") for name, s in seconds.items()}
    emit("start", net=args.net, seconds=rounded, other_load=load.share())


if __name__ == "__main__":
    main()
