"""One engine in a process of its own: import it, load a network from a file, run it once, and say how much memory.

Not called by hand: `bench_memory` and `bench_start` start it as ``first_run.py ENGINE MODEL INPUT THREADS``. Prints a
JSON line when the engine is imported and one when the first result is there, with resident and peak bytes.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np


def report(point: str) -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    memory = {name: 1024 * int(status[key].split()[0]) for name, key in (("resident", "VmRSS"), ("peak", "VmHWM"))}
    print(json.dumps({"point": point, **memory}), flush=True)


def main() -> None:
    engine, model, source, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    x = np.load(source)
    if engine == "pqnet":
        import pqnet

        report("imported")
        network = pqnet.load(model)
        y = network(x, threads=threads)
    else:
        if engine == "onnxruntime":
            import onnxruntime as onnxruntime
        else:
            import openvino as openvino
        from peers_load import LOADERS

        report("imported")
        run = LOADERS[engine](
            model, {"input": x}, threads
        )  # a name, so that the network is not freed before the report
        y = run()
    report("result")
    np.save(f"{source}.{engine}.npy", y)
    sys.stdout.flush()
    os._exit(0)  # what an engine does at exit is not measured


if __name__ == "__main__":
    main()
