"""Quantization killed at random moments and continued: whether the file is the same, byte for byte.

Every run starts ``pqnet quantize --checkpoint`` in a new folder, ends it by SIGKILL, some times over, and then lets it
end. The moment is drawn: a number of layers that are done, and a time after that, up to what a layer takes on average.

Example: ``python bench/bench_resume.py model.h5 x.npy --runs 10 --kills 4``
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import emit, machine

import pqnet


def count(layers: Path) -> int:
    return len(list(layers.glob("*.h5")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="pqnet file of a float network")
    parser.add_argument("calibration", help=".npy")
    parser.add_argument("--preset", default="small-blocks")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kills", type=int, default=4, help="of each run")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    emit("machine", **machine() | {"threads": args.threads})
    command = [sys.executable, "-m", "pqnet", "quantize", args.model, "--calibration", args.calibration]
    command += ["--preset", args.preset, "--threads", str(args.threads)]
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        want = Path(folder) / "want.h5"
        start = time.perf_counter()
        subprocess.run([*command, "-o", str(want)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        total, same = len(pqnet.load(want).graph.meta["quantization"]["layers"]), 0
        for run in range(args.runs):
            got, layers = Path(folder) / f"{run}.h5", Path(folder) / str(run)
            resumed = [*command, "-o", str(got), "--checkpoint", str(layers)]
            done = []  # layers that were there when the process was killed
            for wanted in sorted(moments.randint(0, total) for _ in range(args.kills)):
                with subprocess.Popen(resumed, stdout=subprocess.DEVNULL) as process:
                    while process.poll() is None and count(layers) < wanted:
                        time.sleep(0.001)
                    time.sleep(moments.uniform(0, seconds / total))
                    process.kill()
                if process.returncode == -signal.SIGKILL:
                    done.append(count(layers))
            start = time.perf_counter()
            subprocess.run(resumed, check=True, stdout=subprocess.DEVNULL)
            last = time.perf_counter() - start
            equal = got.read_bytes() == want.read_bytes()
            same += equal
            emit("resume", run=run, same_bytes=equal, layers_when_killed=done, last_seconds=last)
    emit("resume", runs=args.runs, same_bytes=same, seconds=seconds)


if __name__ == "__main__":
    main()
