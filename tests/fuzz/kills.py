"""Kills commands at random moments, and looks at what is left: nothing unreadable, and the same result in the end.

    python tests/fuzz/kills.py                      # 50 kills -9 over quantize, plan, train, save and report
    python tests/fuzz/kills.py --signal INT         # or Ctrl-C: exit code 130 as well

Each command is started again after each kill, goes on or begins anew, and is killed again; the last time it may end,
and its file has to have the bytes of one that was never killed. After every kill all files under their own names have
to be readable. Moments are a function of the seed, as far as the machine allows.
"""

# ruff: noqa: E402  # the environment comes first

import argparse
import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "2", "PQNET_TUNE": "0"}
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "converters")]

import numpy as np

import pqnet
import pqnet.pipeline
import pqnet.report.page
from pqnet.cli.main import main as pqnet_main
from pqnet.demo import load_images, model_path
from pqnet.io import read_container, without_digest

with contextlib.suppress(ImportError):
    import pqnet.train

SAVES = 40
Job = Callable[[], int]


def command(line: str) -> Job:
    return lambda: pqnet_main(line.split())


def save() -> int:
    """Save a network of a few megabytes again and again."""
    model = pqnet.load("large.h5")
    for _ in range(SAVES):
        model.save("saved.h5")
    return 0


JOBS: dict[str, tuple[Job, str]] = {  # what is done, and the file that comes of it
    "quantize": (
        command("quantize model.h5 --calibration x.npy --preset small-blocks --checkpoint layers -o small.h5 --quiet"),
        "small.h5",
    ),
    "plan": (command("plan model.h5 --calibration x.npy --target-size 20x -o plan.yaml --quiet"), "plan.yaml"),
    "train": (
        command(
            "train model.h5 --method lc --preset small-blocks --data x.npy --steps 60 --every 5 --batch 32 "
            "--checkpoint state.pt -o trained.h5 --quiet"
        ),
        "trained.h5",
    ),
    "save": (save, "saved.h5"),
    "report": (command("report model.h5 -o report.html --quiet"), "report.html"),
}


def prepare() -> None:
    """Write what the commands read."""
    pqnet.load(model_path()).save("model.h5")
    np.save("x.npy", load_images()[0][:160])
    b = pqnet.graph.GraphBuilder({"x": pqnet.graph.ValueInfo(("n", 1024))}, {"n": 1})
    weight = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    pqnet.Model(b.build({"y": b.add("linear", "x", name="fc", params={"weight": weight})})).save("large.h5")


def start(job: Job) -> int:
    """Run a job in a forked process; return its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = job()
    except KeyboardInterrupt:  # of a job that is no command
        code = 130
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def unreadable(folder: Path) -> list[str]:
    """Return the files under names of their own that cannot be read."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".pqnet-")):
        try:
            if path.parent.name == "layers":
                read_container(path, "layer")
            elif path.suffix == ".h5":
                pqnet.load(path)
            elif path.suffix == ".yaml":
                pqnet.Recipe.read(path)
            elif path.suffix == ".html" and not path.read_text("utf-8").rstrip().endswith("</html>"):
                raise ValueError("it ends early")
            elif path.suffix == ".pt":
                without_digest(path)
        except Exception as reason:
            found.append(f"{path.name}: {type(reason).__name__}: {reason}")
    return found


def content(path: Path) -> bytes:
    """Return what a file says; of a report all but times."""
    data = path.read_bytes()
    return re.sub(rb"[\d.]+", b"", data[: data.find(b"<svg")]) if path.suffix == ".html" else data


def attack(name: str, kills: int, which: int, seed: int) -> list[str]:
    """Kill a job so many times; return what is wrong."""
    job, output = JOBS[name]
    rng, problems, outcomes = random.Random(f"{name} {seed}"), [], Counter()
    begun = time.monotonic()
    if code := finish(start(job)):
        return [f"{name}: exit code {code}: {Path('log.txt').read_text('utf-8')[-500:]}"]
    seconds, want = time.monotonic() - begun, content(Path(output))
    clean()
    for i in range(kills):
        child = start(job)
        time.sleep(rng.uniform(0.0, 1.0) ** 1.5 * seconds)
        os.kill(child, which)
        code = finish(child)
        outcomes[code] += 1
        allowed = {0, -which} if which == signal.SIGKILL else {0, 130}
        if code not in allowed:
            problems.append(f"{name}, kill {i}: exit code {code}: {Path('log.txt').read_text('utf-8')[-500:]}")
        problems += [f"{name}, kill {i}: {text}" for text in unreadable(Path())]
        if code == 0:
            clean()  # it was faster
    if code := finish(start(job)):
        problems.append(f"{name}, in the end: exit code {code}: {Path('log.txt').read_text('utf-8')[-500:]}")
    elif content(Path(output)) != want:
        problems.append(f"{name}: another {output} than without kills")
    elif left := [path.name for path in Path().rglob(".pqnet-*")]:
        problems.append(f"{name}: {len(left)} temporary files are left")
    print(
        f"{name}: {kills} kills within {seconds:.1f} s, exit codes {dict(outcomes)}, {len(problems)} problems",
        flush=True,
    )
    clean()
    return problems


def clean() -> None:
    """Remove what jobs have written."""
    for path in [*Path("layers").glob("*"), *Path().glob("state.pt"), *(Path(output) for _, output in JOBS.values())]:
        path.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in all (default 50)")
    parser.add_argument("--jobs", nargs="*", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--signal", choices=["KILL", "INT"], default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    which, problems = getattr(signal, f"SIG{args.signal}"), []
    with tempfile.TemporaryDirectory(prefix="pqnet-kills-") as folder:
        os.chdir(folder)
        prepare()
        for i, name in enumerate(args.jobs):
            share = args.kills * (i + 1) // len(args.jobs) - args.kills * i // len(args.jobs)
            problems += attack(name, share, which, args.seed)
        os.chdir("/")
    print("\n".join(problems) or "all went on or began again, and gave the same files")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
