"""Changes good files at random, where their structure is, and looks at what pqnet makes of them.

    python tests/fuzz/fuzz.py --class model --seconds 60 --seed 1
    python tests/fuzz/fuzz.py --class npy --only 4711         # one mutant again, in this process

Right is a network, a recipe or an array that is what a reference makes of the same file, or a PQNetError. All else,
also more than 1 GiB of addresses, 5 seconds of CPU or ten minutes, saves the mutant to --keep and lets this program
exit with 1. A mutant is a function of class, seed and number. Each process does one after the other; the next takes
over from one that died.
"""

# ruff: noqa: E402  # the environment comes first

import argparse
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "PQNET_NUM_THREADS": "1", "PQNET_TUNE": "0"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np
from mutants import CLASSES
from numba.core import event

from pqnet import PQNetError

MEMORY = 1 << 30  # bytes that may be mapped
FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where nobody waits for a disk
SECONDS, PATIENCE = 5, 600  # of CPU, and of the clock: other programs may need the CPU, or stop this one for a while
HANGS = {-signal.SIGPROF: f"a hang of {SECONDS} s of CPU", -signal.SIGALRM: f"a hang of {PATIENCE} s of the clock"}


def limit_time(cpu: float, clock: float) -> None:
    """Let the process end after so many seconds of CPU, or of the clock; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, cpu)
    signal.setitimer(signal.ITIMER_REAL, clock)


class Unlimited(event.Listener):
    """Compiling a kernel does not count."""

    def on_start(self, event: Any) -> None:
        limit_time(0, 0)

    def on_end(self, event: Any) -> None:
        limit_time(SECONDS, PATIENCE)


def one(kind: str, seed: int, number: int, path: Path) -> str:
    """Make a mutant and return what came of it; raise if that is wrong."""
    make, load, _ = CLASSES[kind]
    rng = np.random.default_rng([seed, list(CLASSES).index(kind), number])
    make(rng, path)
    limit_time(SECONDS, PATIENCE)
    try:
        return load(rng, path)
    except PQNetError:
        return "refused"
    finally:
        limit_time(0, 0)


def mapped_by_torch() -> int:
    """Import PyTorch and return how many bytes are mapped then."""
    import torch  # noqa: F401

    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmSize:")[2].split()[0])


def work(kind: str, seed: int, numbers: range, folder: Path) -> None:
    """Do one mutant after the other, and say so before and after."""
    memory = MEMORY + (mapped_by_torch() if kind == "training" else 0)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    event.register("numba:compile", Unlimited())
    for number in numbers:
        print("begin", number, flush=True)
        try:
            print("end", one(kind, seed, number, folder / f"mutant{CLASSES[kind][2]}"), flush=True)
        except Exception as reason:
            place = traceback.extract_tb(reason.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            print("wrong", f"{type(reason).__name__} at {where}: {' '.join(str(reason).split())[:200]}", flush=True)


# -- many ----------------------------------------------------------------------------------------------------


class Worker:
    """A process that does every n-th mutant of a class."""

    def __init__(self, kind: str, seed: int, first: int, step: int) -> None:
        self.kind, self.seed, self.number, self.step = kind, seed, first, step
        self.folder = tempfile.TemporaryDirectory(prefix="pqnet-fuzz-", dir=FOLDER)
        self.start()

    def start(self) -> None:
        arguments = [self.kind, str(self.seed), str(self.number), str(self.step), self.folder.name]
        command = [sys.executable, sys.argv[0], "--work", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def step_on(self) -> tuple[str, int]:
        """Return what came of a mutant, and its number; waits for it."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            what, _, rest = line.rstrip("\n").partition(" ")
            if what == "begin":
                self.number = int(rest)
            else:
                self.number += self.step
                return (rest if what == "end" else f"wrong: {rest}"), self.number - self.step
        code = self.process.wait()
        self.number += self.step
        self.start()
        return f"wrong: the process ended with {HANGS.get(code, code)}", self.number - self.step

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def fuzz(kinds: list[str], seconds: float, seed: int, workers: int, keep: Path, mutants: int) -> int:
    """Try mutants for so many seconds, or so many of each class, and return how many were wrong."""
    found: Counter[str] = Counter()
    wrong = 0
    for kind in kinds:
        pool = [Worker(kind, seed, i, workers) for i in range(workers)]
        until, done = time.monotonic() + seconds / len(kinds), 0
        with selectors.DefaultSelector() as ready:
            while (time.monotonic() < until or done == 0) and done < mutants:
                for key in list(ready.get_map().values()):
                    ready.unregister(key.fileobj)
                for worker in pool:
                    ready.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
                for key, _ in ready.select(1):
                    outcome, number = key.data.step_on()
                    done += 1
                    found[f"{kind} {outcome if not outcome.startswith('wrong') else 'wrong'}"] += 1
                    if outcome.startswith("wrong"):
                        wrong += 1
                        keep.mkdir(parents=True, exist_ok=True)
                        saved = keep / f"{kind}-{seed}-{number}{CLASSES[kind][2]}"
                        make = CLASSES[kind][0]
                        make(np.random.default_rng([seed, list(CLASSES).index(kind), number]), saved)
                        print(f"{saved}: {outcome}", flush=True)
        for worker in pool:
            worker.stop()
    for what, count in sorted(found.items()):
        print(f"{count:8d} {what}")
    return wrong


def main() -> int:
    if sys.argv[1:2] == ["--work"]:
        kind, seed, first, step, folder = sys.argv[2:]
        work(kind, int(seed), range(int(first), 1 << 60, int(step)), Path(folder))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--class", dest="kinds", action="append", choices=CLASSES, help="repeatable; default all")
    parser.add_argument("--seconds", type=float, default=60, help="for all classes together (default 60)")
    parser.add_argument("--mutants", type=int, default=1 << 60, help="at most so many of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), help="folder for mutants that went wrong")
    parser.add_argument("--only", type=int, help="the number of one mutant, to see its traceback")
    args = parser.parse_args()
    kinds = args.kinds or list(CLASSES)
    if args.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(one(kinds[0], args.seed, args.only, Path(folder) / f"mutant{CLASSES[kinds[0]][2]}"))
        return 0
    return int(fuzz(kinds, args.seconds, args.seed, args.workers, args.keep, args.mutants) > 0)


if __name__ == "__main__":
    sys.exit(main())
