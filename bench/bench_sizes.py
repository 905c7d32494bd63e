"""Files of the papers' networks under their presets, by the command line: ``pqnet convert torch``, ``pqnet quantize``.

Weights are random: sizes depend on shapes alone. ``stated_mib`` is the paper's, ``file_mib`` what the file takes at
most (``quantize --dry-run``). With ``--fit``, codes are searched (by their weights alone) and the file is written:
``written_mib`` is its size, ``counted_mib`` what it takes as the papers count.

Example: ``python bench/bench_sizes.py --only "roberta-base, share 2" --fit``
"""

import argparse
import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

from common import emit

import pqnet
from pqnet.cli.main import main as pqnet_command

TESTS = Path(__file__).resolve().parents[1] / "tests"
IMAGE, TEXT = ["--input", "1x3x224x224"], ["--input", "input_ids=BxT:int64"]
# Row name: function of tests/nets.py, its inputs, preset, MiB that its paper states.
ROWS = {
    "resnet18, small blocks": ("resnet18", IMAGE, "bgd-resnet18-small", 1.54),
    "resnet18, large blocks": ("resnet18", IMAGE, "bgd-resnet18-large", 1.03),
    "resnet50, small blocks": ("resnet50", IMAGE, "bgd-resnet50-small", 5.09),
    "resnet50, large blocks": ("resnet50", IMAGE, "bgd-resnet50-large", 3.19),
    "efficientnet-b3": ("efficientnet_b3", IMAGE, "ipq-efficientnet", 3.3),
    "roberta-base": ("roberta_base", TEXT, "ipq-transformer", 38),
    "roberta-base, share 2": ("roberta_base_shared", TEXT, "ipq-transformer", 14),
}
MIB = 2**20


def run(*line: str) -> str:
    """Run one command and return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        failed = pqnet_command(line)
    if failed:
        raise SystemExit(failed)
    return printed.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--fit", action="store_true", help="write the files, which takes minutes")
    args = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    for row in args.only:
        module, inputs, preset, stated = ROWS[row]
        with tempfile.TemporaryDirectory() as folder:
            model, small = str(Path(folder, "model.h5")), Path(folder, "small.h5")
            run("convert", "torch", f"nets:{module}", *inputs, "-o", model)
            said = re.search(r"at most (\d+) bytes", run("quantize", model, "--preset", preset, "--dry-run"))
            figures = {"file_mib": int(said[1]) / MIB} if said else {}
            if args.fit:
                run("quantize", model, "--preset", preset, "--metric", "none", "--effort", "low", "-o", str(small))
                counted = pqnet.load(small).size()
                figures |= {"written_mib": small.stat().st_size / MIB, "counted_mib": counted.total / MIB}
            emit(row, preset=preset, stated_mib=stated, **figures)


if __name__ == "__main__":
    main()
