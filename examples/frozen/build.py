"""Freezes `digits.py` with a network and compiled kernels in it.

    pip install pyinstaller
    python examples/frozen/build.py small.h5 -o dist --batch 1 --batch 8

The folder ``dist/digits`` runs on other machines of this system without Python, from a read-only place, and writes
nothing. Its kernels are for every CPU with AVX2 (x86-64-v3); ``--cpu host`` makes those that are fastest on this one.
Where neither fits, they are compiled in memory at each start.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What Numba calls a CPU, and what it may use of it: of the level x86-64-v3, all Intel and AMD CPUs of some years.
LEVELS = {
    "host": {},
    "x86-64-v3": {
        "NUMBA_CPU_NAME": "x86-64-v3",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+cx16,+f16c,+fma,+lzcnt,+movbe,+popcnt,+sse,+sse2,+sse3,+ssse3,"
        "+sse4.1,+sse4.2",
    },
}


def build(model: Path, output: Path, batches: list[int], cpu: str) -> Path:
    """Make the bundle and return its folder."""
    work = output / "build"
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN"]
    subprocess.run(
        [*command, "--distpath", str(output), "--workpath", str(work), str(HERE / "digits.spec")], check=True
    )
    shutil.rmtree(work)
    bundle = output / "digits"
    inside = bundle / "_internal"
    shutil.copy(model, inside / "model.h5")
    (inside / "cpu.json").write_text(json.dumps(LEVELS[cpu]))
    warm(model, inside / "kernels", batches, cpu)
    return bundle


def warm(model: Path, kernels: Path, batches: list[int], cpu: str) -> None:
    """Compile the kernels that a network needs into a folder."""
    shapes = [argument for batch in batches for argument in ("--batch", str(batch))]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(kernels.resolve()), "PQNET_TUNE": "0"} | LEVELS[cpu]
    subprocess.run([sys.executable, "-m", "pqnet", "warmup", str(model), *shapes], env=environment, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"))
    parser.add_argument("--batch", type=int, action="append", help="sizes to compile kernels for (default 1)")
    parser.add_argument("--cpu", choices=LEVELS, default="x86-64-v3")
    args = parser.parse_args()
    bundle = build(args.model, args.output, args.batch or [1], args.cpu)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"{bundle}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
