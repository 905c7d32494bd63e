"""Memory that a network takes in a fresh process: resident and peak, engine imported, then loaded and run once.

``increase`` is result minus import, the network's own part; shares are ours / theirs, of the increases and of the whole
process (Numba and LLVM are a large import). Kernels are compiled before.

Example: ``python bench/bench_memory.py --net resnet50-spatial``
"""

import argparse
import statistics
import tempfile

from common import emit, machine
from fresh import Files
from nets import NETS
from peers_load import LOADERS

MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--net", choices=[name for name in NETS if name.startswith("resnet")], default="resnet50-spatial"
    )
    parser.add_argument("--peers", nargs="*", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    emit("machine", **machine(args.peers) | {"threads": args.threads})
    engines = ["pqnet", *args.peers]
    increases: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = Files(folder, args.net)
        for engine in engines:
            files.first_run(engine, args.threads, warm=False)
        files.check(engines)
        for engine in engines:
            runs = [files.first_run(engine, args.threads) for _ in range(args.runs)]
            middle = {
                f"{point}_{kind}": statistics.median(getattr(run, point)[kind] for run in runs) / MB
                for point in ("imported", "result")
                for kind in ("resident", "peak")
            }
            increases[engine] = {
                "resident": middle["result_resident"] - middle["imported_resident"],
                "peak": middle["result_peak"] - middle["imported_resident"],
                "whole_process": middle["result_resident"],
            }
            file = files.model if engine == "pqnet" else files.onnx
            increase = {f"increase_{kind}": increases[engine][kind] for kind in ("resident", "peak")}
            emit("memory", net=args.net, engine=engine, file_mb=file.stat().st_size / MB, **middle, **increase)
    for peer in args.peers:
        share = {kind: ours / increases[peer][kind] for kind, ours in increases["pqnet"].items()}
        emit("memory-share", net=args.net, peer=peer, **share)


if __name__ == "__main__":
    main()
