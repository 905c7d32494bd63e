"""What is frozen: labels the .npy files and images that it is given, by the network in the bundle.

Nothing is written: kernels come compiled with the bundle; a CPU that they are not for compiles them in memory.
"""

import json
import os
import sys
from pathlib import Path

import llvmlite.binding as llvm

BUNDLE = Path(__file__).resolve().parent
# All of this before Numba is imported.
os.environ["NUMBA_CACHE_DIR"] = str(BUNDLE / "kernels")
os.environ["PQNET_TUNE"] = "0"  # a folder that cannot be written to keeps no measurements
level = json.loads((BUNDLE / "cpu.json").read_text())
there = {f"+{name}" for name, has in llvm.get_host_cpu_features().items() if has}
if there.issuperset(level.get("NUMBA_CPU_FEATURES", "+sse2").split(",")):
    os.environ |= level  # else an older CPU

import pqnet  # noqa: E402
from pqnet.io import read_numpy  # noqa: E402


def main() -> int:
    model = pqnet.load(BUNDLE / "model.h5")
    name = next(iter(model.inputs))
    try:
        for path in map(Path, sys.argv[1:]):
            array = {name: read_numpy(path)} if path.suffix == ".npy" else pqnet.prepare(model, images=[path])
            for best in pqnet.likeliest(model, model.run(array), 1):
                print(f"{path}: {best[0][0]} {best[0][1]:.6f}")
    except pqnet.PQNetError as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
