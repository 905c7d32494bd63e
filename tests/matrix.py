"""Runs a fast part of the tests against a built wheel, with the oldest and newest packages, on every Python at hand.

    make matrix
    python tests/matrix.py --uv uv --python ~/python3.14/bin/python --torch dist/pqnet-*.whl

A row is a Python (3.11 to 3.14: those on the path, and those of ``--python``) and the lowest or the highest versions
that the wheel's metadata allow, of those that the index has wheels of; with ``--torch`` also PyTorch. ``uv``
chooses them. The exit code is the number of rows that failed; rows without an interpreter or wheels are skipped, and
said to be.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TESTS = Path(__file__).parent
MINORS = ("3.11", "3.12", "3.13", "3.14")
SHOWN = ("numpy", "numba", "h5py", "torch")
# Files, codecs, k-means kernels, updates; with PyTorch the conversion. `pqnet doctor` runs a network from its codes.
FILES = ("test_io.py", "test_codecs.py", "test_kmeans.py", "test_arrays.py", "test_update.py")
TORCH_FILES = ("test_from_torch.py",)
NEEDED = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100")


def interpreters(given: list[str]) -> dict[str, str]:
    """Return a Python for each version that there is one of, from what was given and from the path."""
    found: dict[str, str] = {}
    for python in [*given, *(path for minor in MINORS if (path := shutil.which(f"python{minor}")))]:
        code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if done.returncode == 0:
            found.setdefault(done.stdout.strip(), python)
    return {minor: found[minor] for minor in MINORS if minor in found}


def requirements(wheel: Path, torch: bool) -> list[str]:
    """Return what a wheel requires, so that its lowest versions are taken but not those of what these require."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    found = [
        line.removeprefix("Requires-Dist: ").partition("; extra == ") for line in lines if "Requires-Dist: " in line
    ]
    return [what for what, _, extra in found if not extra or (torch and extra == '"torch"')]


def run_row(uv: str, python: str, resolution: str, wheel: Path, torch: bool, folder: Path) -> tuple[str, str]:
    """Return "passed", "failed" or "skipped", and versions or the reason."""
    subprocess.run([uv, "venv", "--quiet", "--python", python, str(folder / "env")], check=True)
    inside = folder / "env" / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [uv, "pip", "install", "--quiet", "--python", str(inside), "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--resolution", resolution, str(wheel), *requirements(wheel, torch)], capture_output=True, text=True
    )
    if done.returncode == 0:  # the tools of the tests are no part of what is tested
        done = subprocess.run([*command, *NEEDED], capture_output=True, text=True)
    if done.returncode:
        return "skipped", " ".join(done.stderr.split())[:300]
    ask = "from importlib.metadata import version, packages_distributions as p\n"
    ask += f"print(*(f'{{n}} {{version(n)}}' for n in {SHOWN!r} if n in p()), sep=', ')"
    versions = subprocess.run([str(inside), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    files = [str(TESTS / name) for name in FILES + (TORCH_FILES if torch else ())]
    options = ["-c", str(TESTS.parent / "pyproject.toml"), "-m", "not exhaustive", "-p", "no:cacheprovider"]
    pytest = ["-m", "pytest", "-o", "addopts=--strict-markers", *options, *files]
    for arguments in (["-m", "pqnet", "doctor"], pytest):
        done = subprocess.run([str(inside), *arguments], cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            return "failed", f"{versions}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
    return "passed", f"{versions}; {done.stdout.strip().splitlines()[-1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--uv", default="uv", help="the program uv")
    parser.add_argument("--python", action="append", default=[], help="a Python that is not on the path; repeatable")
    parser.add_argument("--torch", action="store_true", help="with PyTorch, of which an index may have gigabytes")
    parser.add_argument("--only", action="append", choices=MINORS, help="versions of Python (default all); repeatable")
    args = parser.parse_args()
    found, failed = interpreters(args.python), 0
    for minor in args.only or MINORS:
        for resolution in ("lowest-direct", "highest"):
            row = f"Python {minor}, {resolution}{', torch' if args.torch else ''}"
            outcome, text = "skipped", "no such Python here"
            if minor in found:
                with tempfile.TemporaryDirectory(prefix="pqnet-matrix-") as folder:
                    wheel = args.wheel.resolve()
                    outcome, text = run_row(args.uv, found[minor], resolution, wheel, args.torch, Path(folder))
            failed += outcome == "failed"
            print(f"{row}: {outcome}; {text}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
