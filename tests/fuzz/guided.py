"""Coverage-guided fuzzing of what reads files, by Atheris: files that reach new lines of pqnet are changed further.

    pip install atheris
    python tests/fuzz/guided.py model --seconds 1200 --keep fuzz-found
    python tests/fuzz/guided.py model fuzz-found/crash-1a2b                   # one file again

It begins with mutants of `mutants.py`. Half of the changes are those of libFuzzer, half know the structure of the file
and keep its checksum right. Right is what `fuzz.py` calls right; all else, also 5 seconds of CPU, ten minutes, or
1 GiB of resident memory, ends the program with an exit code other than 0, and the file is kept as ``crash-...``,
``timeout-...`` or ``oom-...``.
"""

# ruff: noqa: E402  # the environment comes first

import argparse
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "PQNET_NUM_THREADS": "1", "PQNET_TUNE": "0"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import atheris

# Python that reads and checks; kernels are compiled from theirs, and stay as they are.
INSTRUMENTED = ["pqnet.io", "pqnet.graph", "pqnet.codecs", "pqnet.pipeline", "pqnet_converters", "yaml"]
with atheris.instrument_imports(include=INSTRUMENTED):
    from mutants import CHANGES, CLASSES

import numpy as np
from numba.core import event

from pqnet import PQNetError

KINDS = ("model", "recipe", "npy", "npz", "statistics", "onnx")
SECONDS, PATIENCE, MEGABYTES = 5, 600, 1024  # of CPU, and of the clock, where other programs need CPU and disk
FIRST = 200  # mutants to begin with


class Target:
    """One class of files, and a place for one of them."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.path, self.compiling = kind, folder / f"mutant{CLASSES[kind][2]}", 0.0

    def add_compiling(self, seconds: float) -> None:
        """Take note of how long a kernel was compiled: that does not count."""
        self.compiling += seconds

    def read(self, data: bytes) -> None:
        """Let pqnet read a file; raise if what comes of it is wrong."""
        self.path.write_bytes(data)
        start = time.process_time() - self.compiling
        with suppress(PQNetError):
            CLASSES[self.kind][1](np.random.default_rng(0), self.path)
        if (seconds := time.process_time() - self.compiling - start) > SECONDS:
            raise TimeoutError(f"{seconds:.1f} seconds of CPU")

    def change(self, data: bytes, most: int, seed: int) -> bytes:
        """Change a file, by its structure or without a thought."""
        rng = np.random.default_rng(seed)
        if self.kind in CHANGES and rng.random() < 0.5:
            self.path.write_bytes(data)
            try:
                CHANGES[self.kind](rng, self.path)
                changed = self.path.read_bytes()
                return changed if len(changed) <= most else data
            except Exception:  # it has no structure any more
                pass
        return atheris.Mutate(data, most)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("file", nargs="?", help="read this one, and nothing else")
    parser.add_argument("--seconds", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), help="folder for files that went wrong")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pqnet-fuzz-") as folder:
        target, corpus = Target(args.kind, Path(folder)), Path(folder) / "corpus"
        corpus.mkdir()
        for number in range(FIRST if args.file is None else 0):
            CLASSES[args.kind][0](np.random.default_rng([args.seed, number]), corpus / f"{number}{target.path.suffix}")
        args.keep.mkdir(parents=True, exist_ok=True)
        options = [f"-max_total_time={args.seconds}", f"-seed={args.seed}", f"-artifact_prefix={args.keep}/"]
        options += [
            f"-timeout={PATIENCE}",
            f"-report_slow_units={PATIENCE}",
            f"-rss_limit_mb={MEGABYTES}",
            "-max_len=65536",
            "-print_final_stats=1",
        ]
        with event.install_timer("numba:compile", target.add_compiling):
            files = [str(corpus)] if args.file is None else [args.file]
            atheris.Setup([sys.argv[0], *options, *files], target.read, custom_mutator=target.change)
            atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
