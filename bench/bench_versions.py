"""Two checkouts of pqnet against each other, each in a process of its own, on the networks of `nets`, in turn.

``ratio`` is the median time of the second checkout over that of the first: below 1 the second is faster. Each side runs
in blocks with a pause before each, so that the threads of neither wait while the other is timed.

Example: ``python bench/bench_versions.py ../before . --only resnet50-channel roberta-base-128``
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

WORKER = """
import json, sys, time
import numpy as np
import pqnet
from nets import NETS, sample
name, threads = sys.argv[1], int(sys.argv[2])
build, batch, _ = NETS[name]
model = pqnet.Model(build())
arrays = list(sample(model.graph, batch).values())
output = model(*arrays, threads=threads)
output = output[0] if isinstance(output, tuple) else output
print(json.dumps([float(output.astype(np.float64).sum()), float(np.abs(output).max())]), flush=True)
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        start = time.perf_counter()
        model(*arrays, threads=threads)
        times.append(time.perf_counter() - start)
    print(json.dumps(times), flush=True)
"""


class Side:
    """A process that runs one network with the code of one checkout."""

    def __init__(self, root: Path, name: str, threads: int) -> None:
        root = root.resolve()  # also the folder that it runs in, which Python looks in first
        paths = [str(root / part) for part in ("", "converters", "bench")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-c", WORKER, name, str(threads)]
        self.process = subprocess.Popen(
            command, env=env, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.times: list[float] = []
        self.output = self._answer()

    def _answer(self) -> list[float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side ended early")
        return list(json.loads(line))

    def run(self, calls: int) -> None:
        """Time some calls."""
        assert self.process.stdin is not None
        time.sleep(0.3)
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        self.times += self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", nargs="*", required=True)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for name in args.only:
        sides = [Side(root.resolve(), name, args.threads) for root in (args.before, args.after)]
        for _ in range(args.blocks):
            for side in sides:
                side.run(args.calls)
        medians = [statistics.median(side.times) for side in sides]
        row = {"net": name, "ms": [round(1e3 * m, 3) for m in medians], "ratio": round(medians[1] / medians[0], 3)}
        print(json.dumps(row | {"outputs": [side.output for side in sides]}), flush=True)
        for side in sides:
            side.close()


if __name__ == "__main__":
    main()
